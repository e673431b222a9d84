package conf

import (
	"encoding/json"
	"fmt"
	"strings"
)

// The labels with which the Container Runtime Interface identifies a pod's containers (k8s.io/kubelet,
// pkg/types/labels.go).
const (
	namespaceLabel = "io.kubernetes.pod.namespace"
	nameLabel      = "io.kubernetes.pod.name"
	uidLabel       = "io.kubernetes.pod.uid"
)

// Identify completes the pod's identity from args.cni: first from K8S_POD_NAMESPACE, K8S_POD_NAME and K8S_POD_UID, then
// from labels (CNI's CONVENTIONS.md, "args in network config"). Runtimes without Kubernetes pass only a part of the
// identity in CNI_ARGS. Identify returns an error if a part that it needs can't be read. Unless enforcement is off, it
// also returns an error if namespace or name is missing.
func (c *NetConf) Identify(args Args) (Args, error) {
	cni := c.identity
	labels, err := readLabels(cni.Labels)
	lacks := args.Namespace == "" || args.Name == ""
	if err != nil && lacks && (cni.Namespace == "" || cni.Name == "") {
		return args, invalid("args.cni.labels", string(cni.Labels), err.Error())
	}
	for _, f := range []struct {
		into       *string
		key, value string
		label      string
	}{
		{&args.Namespace, "args.cni.K8S_POD_NAMESPACE", cni.Namespace, namespaceLabel},
		{&args.Name, "args.cni.K8S_POD_NAME", cni.Name, nameLabel},
		{&args.UID, "args.cni.K8S_POD_UID", cni.UID, uidLabel},
	} {
		key, value := f.key, f.value
		if value == "" {
			key, value = "args.cni.labels: "+f.label, labels[f.label]
		}
		if *f.into != "" || value == "" {
			continue
		}
		if !isObjectName(value) {
			return args, invalid(key, fmt.Sprintf("%.80q", value), "is no Kubernetes name")
		}
		*f.into = value
	}
	if c.Enforcement != Off && (args.Namespace == "" || args.Name == "") {
		return args, &Error{
			Kind: WrongVariable,
			Message: fmt.Sprintf("the runtime doesn't say which pod this is: K8S_POD_NAMESPACE is %q and K8S_POD_NAME %q in "+
				"CNI_ARGS, and policies need both (enforcement is %q); write both into args.cni of the network configuration, "+
				"or as the labels %s and %s into args.cni.labels",
				args.Namespace, args.Name, c.Enforcement, namespaceLabel, nameLabel),
			Details: "kubelet's runtimes pass both; podman passes the name alone, nerdctl neither; " +
				"with enforcement off there is no policy",
		}
	}
	return args, nil
}

func readLabels(raw json.RawMessage) (map[string]string, error) {
	labels := map[string]string{}
	if len(raw) == 0 {
		return labels, nil
	}
	var list []struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	if json.Unmarshal(raw, &list) == nil {
		for _, l := range list {
			labels[l.Key] = l.Value
		}
		return labels, nil
	}
	if err := json.Unmarshal(raw, &labels); err != nil {
		return nil, fmt.Errorf(`must be a list of {"key", "value"}`)
	}
	return labels, nil
}

func isObjectName(s string) bool { return !strings.ContainsFunc(s, isUnsafe) && len(s) <= 253 }
