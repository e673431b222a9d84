package main

import (
	"encoding/json"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/weir-net/weir/endpoint"
)

// call is what the runtime passes (CNI specification 1.1, "Section 2: Execution Protocol"). The specification's
// library would take 5 % of ADD's time to parse it (make bench-cni).
type call struct {
	command                          string
	ContainerID, Netns, IfName, Args string
	StdinData                        []byte
	config                           struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
	}
}

func (c *call) id() string { return endpoint.ID(c.ContainerID, c.IfName) }

// verb describes a value of CNI_COMMAND. VERSION isn't among the verbs, because it needs no configuration.
type verb struct {
	name     string
	since    string   // the first version of the specification that has the verb
	required []string // environment variables, besides CNI_PATH
	do       func(*call) error
}

func allVerbs() []verb {
	return []verb{
		{"ADD", "0.3.0", []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}, add},
		{"DEL", "0.3.0", []string{"CNI_CONTAINERID", "CNI_IFNAME"}, del},
		{"CHECK", "0.4.0", []string{"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"}, check},
		{"GC", "1.1.0", nil, gc},
		{"STATUS", "1.1.0", nil, status},
	}
}

// readCall reads the call without validating it, because the error for an invalid call must also be printed in the
// call's version of the specification. For VERSION, stdin may be empty or a terminal.
func readCall() (*call, error) {
	c := &call{
		command: os.Getenv("CNI_COMMAND"), ContainerID: os.Getenv("CNI_CONTAINERID"), Netns: os.Getenv("CNI_NETNS"),
		IfName: os.Getenv("CNI_IFNAME"), Args: os.Getenv("CNI_ARGS"),
	}
	if info, _ := os.Stdin.Stat(); c.command == "VERSION" && (info == nil || info.Mode()&os.ModeCharDevice != 0) {
		return c, nil
	}
	var err error
	if c.StdinData, err = io.ReadAll(os.Stdin); err != nil {
		return c, refuse(types.ErrIOFailure, "read the network configuration from stdin: %v", err)
	}
	if len(c.StdinData) == 0 && c.command == "VERSION" {
		return c, nil
	}
	if err := json.Unmarshal(c.StdinData, &c.config); err != nil {
		return c, refuse(types.ErrDecodingFailure, "the network configuration on stdin can't be read: %v", err)
	}
	return c, nil
}

func (c *call) spoken() string {
	if _, _, _, err := version.ParseVersion(c.config.CNIVersion); err != nil || c.config.CNIVersion == "" {
		return version.Current()
	}
	return c.config.CNIVersion
}

func (c *call) do() error {
	if c.command == "VERSION" {
		return printVersion(c)
	}
	all := allVerbs()
	i := slices.IndexFunc(all, func(v verb) bool { return v.name == c.command })
	if i < 0 {
		return refuse(types.ErrInvalidEnvironmentVariables, "CNI_COMMAND: %q is no verb of CNI's", c.command)
	}
	v := all[i]
	if err := checkEnvironment(v.required); err != nil {
		return err
	}
	if !isName(c.config.Name) {
		return refuse(types.ErrInvalidNetworkConfig,
			"name: %q: must be of letters, digits, _, . and -, the first a letter or digit", c.config.Name)
	}
	if !slices.Contains(supported, c.config.CNIVersion) {
		return refuse(types.ErrIncompatibleCNIVersion, "cniVersion: %q: must be one of %s",
			c.config.CNIVersion, strings.Join(supported, ", "))
	}
	if knows, err := version.GreaterThanOrEqualTo(c.config.CNIVersion, v.since); err != nil || !knows {
		return refuse(types.ErrIncompatibleCNIVersion,
			"cniVersion: %q: has no %s yet: must be %s at least", c.config.CNIVersion, v.name, v.since)
	}
	return v.do(c)
}

func checkEnvironment(required []string) error {
	var missing []string
	for _, key := range append([]string{"CNI_PATH"}, required...) {
		if os.Getenv(key) == "" {
			missing = append(missing, key)
		}
	}
	if len(missing) > 0 {
		return refuse(types.ErrInvalidEnvironmentVariables, "%s: missing", strings.Join(missing, ", "))
	}
	for _, v := range []struct {
		key   string
		valid func(string) bool
		must  string
	}{
		{"CNI_CONTAINERID", isName, "must be of letters, digits, _, . and -, the first a letter or digit"},
		{"CNI_IFNAME", isIfName, "must be of 15 bytes at most, without blanks, / and :, and neither . nor .."},
	} {
		if value := os.Getenv(v.key); slices.Contains(required, v.key) && !v.valid(value) {
			return refuse(types.ErrInvalidEnvironmentVariables, "%s: %q: %s", v.key, value, v.must)
		}
	}
	return nil
}

// isName reports whether s can be a network's name or a container's ID. The CNI specification 1.1 has the same rules
// for names ("Section 1: Plugin configuration objects") and IDs ("Section 2: Parameters").
func isName(s string) bool {
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("_.-", r)) {
			return false
		}
	}
	return s != ""
}

// isIfName reports whether the kernel (dev_valid_name, net/core/dev.c) and the specification allow s as an interface's
// name.
func isIfName(s string) bool {
	bad := func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) }
	return s != "" && len(s) <= 15 && s != "." && s != ".." && !strings.ContainsFunc(s, bad)
}
