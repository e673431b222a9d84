package conf

import (
	"net"
	"net/netip"
	"strings"
)

// Args are the CNI_ARGS that weir reads: the pod's identity, as containerd gives it, and the requested addresses and
// MAC (CNI's CONVENTIONS.md, "CNI_ARGS").
type Args struct {
	Namespace, Name, UID string
	IPs                  []netip.Addr // separated by commas in CNI_ARGS
	MAC                  net.HardwareAddr
}

// ParseArgs reads CNI_ARGS, "KEY=VALUE;KEY=VALUE". It ignores keys that weir doesn't know. It returns an *Error if a
// pair has no "=", or a value is wrong.
func ParseArgs(s string) (Args, error) {
	var a Args
	for pair := range strings.SplitSeq(s, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return Args{}, invalidArgs("%q is no KEY=VALUE pair", pair)
		}
		if value == "" && (key == "IP" || key == "MAC") {
			continue
		}
		switch key {
		case "K8S_POD_NAMESPACE":
			a.Namespace = value
		case "K8S_POD_NAME":
			a.Name = value
		case "K8S_POD_UID":
			a.UID = value
		case "IP":
			for s := range strings.SplitSeq(value, ",") {
				ip, ok := parseAddress(s)
				if !ok {
					return Args{}, invalidArgs("IP=%.80q is no IP address", value)
				}
				a.IPs = append(a.IPs, ip)
			}
		case "MAC":
			mac, ok := parseMAC(value)
			if !ok {
				return Args{}, invalidArgs("MAC=%.80q is no MAC address that one host can have", value)
			}
			a.MAC = mac
		}
	}
	for _, v := range []struct{ key, value string }{
		{"K8S_POD_NAMESPACE", a.Namespace}, {"K8S_POD_NAME", a.Name}, {"K8S_POD_UID", a.UID},
	} {
		if !isObjectName(v.value) {
			return Args{}, invalidArgs("%s=%.80q is no Kubernetes name", v.key, v.value)
		}
	}
	return a, nil
}

// isUnsafe reports whether the character is unsafe in a file name, a set's comment or a log line. Names of
// Kubernetes objects have no such character (RFC 1123 subdomain).
func isUnsafe(r rune) bool {
	return r <= ' ' || r > '~' || strings.ContainsRune(`/\"'`, r)
}
