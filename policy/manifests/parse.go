// Package manifests owns the source that needs no Kubernetes: a directory of ordinary YAML manifests, read again
// whenever a file changes.
package manifests

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	goyaml "go.yaml.in/yaml/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/objects"
)

// Parse reads the manifests of one file: v1 Namespace, v1 Pod, v1 Node and networking.k8s.io/v1 NetworkPolicy. Objects of other
// kinds belong to somebody else and are left out, except for those that could be meant as a NetworkPolicy. Each error
// names the file, the document (from 1) and the field.
func Parse(file string, data []byte) (policy.Objects, error) {
	var all policy.Objects
	var errs []error
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return all, errors.Join(errs...)
		}
		if err == nil {
			err = add(&all, doc)
		}
		for _, e := range split(err) {
			errs = append(errs, fmt.Errorf("%s: document %d: %w", file, n, e))
		}
		if err != nil && doc == nil {
			return all, errors.Join(errs...)
		}
	}
}

func split(err error) []error {
	var many interface{ Unwrap() []error }
	switch {
	case err == nil:
		return nil
	case errors.As(err, &many):
		return many.Unwrap()
	}
	return []error{err}
}

func add(all *policy.Objects, doc []byte) error {
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(doc, &kind); err != nil {
		return err
	}
	if err := single(doc); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if kind == (metav1.TypeMeta{}) {
		var anything any
		if err := yaml.Unmarshal(doc, &anything); err == nil && anything == nil {
			return nil // only comments
		}
	}
	switch {
	case kind.APIVersion == "" || kind.Kind == "":
		return fmt.Errorf("apiVersion and kind: both must be given, got %q and %q", kind.APIVersion, kind.Kind)
	case kind.APIVersion == "v1" && kind.Kind == "Namespace":
		return addNamespace(all, doc)
	case kind.APIVersion == "v1" && kind.Kind == "Pod":
		return addPod(all, doc)
	case kind.APIVersion == "v1" && kind.Kind == "Node":
		return addNode(all, doc)
	case kind.APIVersion == "networking.k8s.io/v1" && kind.Kind == "NetworkPolicy":
		return addPolicy(all, doc)
	case kind.APIVersion == "v1" && kind.Kind == "List", strings.EqualFold(kind.Kind, "NetworkPolicy"), couldBePolicy(kind):
		return fmt.Errorf("kind: %s of %s is not read here; write networking.k8s.io/v1 NetworkPolicy objects, one a document", kind.Kind, kind.APIVersion)
	}
	return nil
}

// couldBePolicy holds for every kind of the groups that NetworkPolicy is or was in, but for those that are known to be
// something else: a typing error in the kind must not leave a policy out.
func couldBePolicy(kind metav1.TypeMeta) bool {
	group, _, _ := strings.Cut(kind.APIVersion, "/")
	others := []string{"Ingress", "IngressClass", "IPAddress", "ServiceCIDR", "Deployment", "DaemonSet", "ReplicaSet"}
	return (group == "networking.k8s.io" || group == "extensions") && !slices.Contains(others, kind.Kind)
}

func addNamespace(all *policy.Objects, doc []byte) error {
	var ns corev1.Namespace
	if err := decode(doc, &ns); err != nil {
		return err
	}
	if msgs := validation.IsDNS1123Label(ns.Name); len(msgs) > 0 {
		return fmt.Errorf("metadata.name: %q: %s", ns.Name, strings.Join(msgs, "; "))
	}
	if err := checkMeta(&ns.ObjectMeta); err != nil {
		return err
	}
	all.Namespaces = append(all.Namespaces, objects.Namespace(&ns))
	return nil
}

func addPod(all *policy.Objects, doc []byte) error {
	var pod corev1.Pod
	if err := decode(doc, &pod); err != nil {
		return err
	}
	if err := checkNamespaced(&pod.ObjectMeta); err != nil {
		return err
	}
	p, problems := objects.Pod(&pod)
	if len(problems) > 0 {
		return objects.Error(problems)
	}
	all.Pods = append(all.Pods, p)
	return nil
}

func addNode(all *policy.Objects, doc []byte) error {
	var node corev1.Node
	if err := decode(doc, &node); err != nil {
		return err
	}
	if err := checkMeta(&node.ObjectMeta); err != nil {
		return err
	}
	n, problems := objects.Node(&node)
	if len(problems) > 0 {
		return objects.Error(problems)
	}
	all.Nodes = append(all.Nodes, n)
	return nil
}

func addPolicy(all *policy.Objects, doc []byte) error {
	var np networkingv1.NetworkPolicy
	if err := decode(doc, &np); err != nil {
		return err
	}
	if err := checkNamespaced(&np.ObjectMeta); err != nil {
		return err
	}
	var errs []error
	for _, p := range policy.Validate(&np) {
		errs = append(errs, errors.New(p.String()))
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	all.Policies = append(all.Policies, &np)
	return nil
}

// decode is strict, as kubectl is: a key that Kubernetes doesn't know, or one that is there twice, is an error that names
// it, and so is a value of another type. Made a string silently, the label "y" would be "true", and "1.10" "1.1".
func decode(doc []byte, into any) error {
	data, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return err
	}
	strict, err := json.UnmarshalStrict(data, into)
	return errors.Join(append(strict, err)...)
}

// single makes sure that nothing stands behind the first YAML document: readers of one document leave the rest out
// without a word.
func single(doc []byte) error {
	d := goyaml.NewDecoder(bytes.NewReader(doc))
	var ignored any
	if err := d.Decode(&ignored); err != nil {
		return err
	}
	if err := d.Decode(&ignored); !errors.Is(err, io.EOF) {
		return errors.New("something stands behind the object; objects are separated by lines with ---")
	}
	return nil
}

func checkNamespaced(meta *metav1.ObjectMeta) error {
	if meta.Namespace == "" {
		meta.Namespace = metav1.NamespaceDefault // as kubectl does
	}
	if msgs := validation.IsDNS1123Label(meta.Namespace); len(msgs) > 0 {
		return fmt.Errorf("metadata.namespace: %q: %s", meta.Namespace, strings.Join(msgs, "; "))
	}
	return checkMeta(meta)
}

func checkMeta(meta *metav1.ObjectMeta) error {
	if msgs := validation.IsDNS1123Subdomain(meta.Name); len(msgs) > 0 {
		return fmt.Errorf("metadata.name: %q: %s", meta.Name, strings.Join(msgs, "; "))
	}
	if errs := metav1validation.ValidateLabels(meta.Labels, field.NewPath("metadata", "labels")); len(errs) > 0 {
		return errs.ToAggregate()
	}
	return nil
}
