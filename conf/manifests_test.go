package conf

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

// kopsCluster has the fields of kops' Cluster that weir's documentation uses
// (k8s.io/kops/pkg/apis/kops/v1alpha2).
type kopsCluster struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Networking struct {
			CNI *struct{} `json:"cni"`
		} `json:"networking"`
		KubeProxy struct {
			Enabled   *bool  `json:"enabled"`
			ProxyMode string `json:"proxyMode"`
		} `json:"kubeProxy"`
		Addons []struct {
			Manifest string `json:"manifest"`
		} `json:"addons"`
		IAM struct {
			AllowContainerRegistry bool `json:"allowContainerRegistry"`
		} `json:"iam"`
	} `json:"spec"`
}

func (c *kopsCluster) DeepCopyObject() runtime.Object { d := *c; return &d }

// podMonitor has the fields of the Prometheus Operator's PodMonitor that conf/monitoring uses
// (prometheus-operator/pkg/apis/monitoring/v1).
type podMonitor struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		JobLabel            string               `json:"jobLabel"`
		Selector            metav1.LabelSelector `json:"selector"`
		PodMetricsEndpoints []struct {
			Path        string `json:"path"`
			Relabelings []struct {
				SourceLabels []string `json:"sourceLabels"`
				Regex        string   `json:"regex"`
				Action       string   `json:"action"`
				TargetLabel  string   `json:"targetLabel"`
				Replacement  string   `json:"replacement"`
			} `json:"relabelings"`
		} `json:"podMetricsEndpoints"`
	} `json:"spec"`
}

func (m *podMonitor) DeepCopyObject() runtime.Object { d := *m; return &d }

func manifests(t *testing.T) map[string][]runtime.Object {
	t.Helper()
	types := runtime.NewScheme()
	types.AddKnownTypeWithName(schema.GroupVersionKind{Group: "kops.k8s.io", Version: "v1alpha2", Kind: "Cluster"},
		&kopsCluster{})
	types.AddKnownTypeWithName(schema.GroupVersionKind{Group: "monitoring.coreos.com", Version: "v1", Kind: "PodMonitor"},
		&podMonitor{})
	if err := scheme.AddToScheme(types); err != nil {
		t.Fatal(err)
	}
	strict := serializer.NewCodecFactory(types, serializer.EnableStrict).UniversalDeserializer()
	all := map[string][]runtime.Object{}
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		isRules := strings.HasPrefix(filepath.Base(path), "alerts") // alerts*.yaml are files of Prometheus
		if err != nil || filepath.Ext(path) != ".yaml" || isRules {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data))); ; {
			doc, err := docs.Read()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			object, _, err := strict.Decode(doc, nil, nil)
			if err != nil {
				t.Errorf("%s, document %d: %v", path, len(all[path])+1, err)
			}
			all[path] = append(all[path], object)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// image is the image's name in the manifests. People replace it with the image's name in their registry
// (Makefile, IMAGE).
const image = "weir.local/weir:dev"

func TestManifests(t *testing.T) {
	conflists := map[string]string{} // the conflist's path on the node, by manifest
	for path, objects := range manifests(t) {
		for _, o := range objects {
			if c, ok := o.(*kopsCluster); ok && c.Spec.Networking.CNI == nil {
				t.Errorf("%s: the network isn't cni", path)
			}
			ds, ok := o.(*appsv1.DaemonSet)
			if !ok {
				continue
			}
			pod := ds.Spec.Template.Spec
			if c := pod.SecurityContext; c == nil || c.SeccompProfile == nil ||
				c.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Errorf("%s: %s: the seccomp profile isn't the runtime's", path, ds.Name)
			}
			if c := pod.SecurityContext.SELinuxOptions; c == nil || c.Type != "spc_t" {
				t.Errorf("%s: %s: SELinux wouldn't let it write the node's directories", path, ds.Name)
			}
			if on := pod.AutomountServiceAccountToken; on == nil || *on {
				t.Errorf("%s: %s: every container gets an API token", path, ds.Name)
			}
			for _, c := range pod.InitContainers {
				for _, m := range c.VolumeMounts {
					if strings.HasPrefix(m.MountPath, "/var/run/secrets") {
						t.Errorf("%s: container %s gets an API token, and asks the API nothing", path, c.Name)
					}
				}
			}
			for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
				if c.Image != image { // people who use their own registry may have no other image there
					t.Errorf("%s: container %s has the image %s; want %s", path, c.Name, c.Image, image)
				}
				for _, m := range c.VolumeMounts {
					if !slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
						t.Errorf("%s: container %s mounts %s, which is no volume", path, c.Name, m.Name)
					}
				}
				wantMemoryLimit(t, path, c)
				for _, arg := range c.Command {
					if file, ok := strings.CutPrefix(arg, "--conflist=/host"); ok {
						conflists[path] = file
					}
				}
			}
		}
	}
	want := map[string]string{
		"weir.yaml":    "/etc/cni/net.d/10-weir.conflist",
		"cleanup.yaml": "/etc/cni/net.d/10-weir.conflist",
	}
	if diff := cmp.Diff(want, conflists); diff != "" {
		t.Errorf("what weir writes, and cleanup removes: %s", diff)
	}
}

// wantMemoryLimit checks that an agent's container has a memory limit, and gets the limit as an environment variable.
// Without the variable, Go collects garbage too late, and the kernel kills the agent.
func wantMemoryLimit(t *testing.T, path string, c corev1.Container) {
	t.Helper()
	if len(c.Command) < 2 || c.Command[1] != "run" {
		return
	}
	knows := slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool {
		return e.Name == "MEMORY_LIMIT" && e.ValueFrom != nil && e.ValueFrom.ResourceFieldRef != nil &&
			e.ValueFrom.ResourceFieldRef.Resource == "limits.memory" && e.ValueFrom.ResourceFieldRef.Divisor.IsZero()
	})
	if c.Resources.Limits.Memory().IsZero() || !knows {
		t.Errorf("%s: container %s has the limits %v, and knows its memory limit: %v", path, c.Name, c.Resources.Limits,
			knows)
	}
}
