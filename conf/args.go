package conf

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// Args are the CNI_ARGS that weir uses: who the pod is, which containerd sets (K8S_POD_*), and what it shall have (IP, MAC:
// CNI's CONVENTIONS.md, "CNI_ARGS"). cnitool passes all of them on.
type Args struct {
	Namespace, Name, UID string
	IPs                  []netip.Addr // one, or several with commas between
	MAC                  net.HardwareAddr
}

// ParseArgs reads CNI_ARGS, "KEY=VALUE;KEY=VALUE". Keys that weir doesn't know are left to whom they concern.
func ParseArgs(s string) (Args, error) {
	var a Args
	for pair := range strings.SplitSeq(s, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return Args{}, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS: %q is no KEY=VALUE pair", pair), "")
		}
		switch key {
		case "IP", "MAC":
			if value == "" {
				continue
			}
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
					return Args{}, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS: IP=%.80q is no IP address", value), "")
				}
				a.IPs = append(a.IPs, ip)
			}
		case "MAC":
			mac, ok := parseMAC(value)
			if !ok {
				return Args{}, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS: MAC=%.80q is no MAC address that one host can have", value), "")
			}
			a.MAC = mac
		}
	}
	for _, v := range []struct{ key, value string }{
		{"K8S_POD_NAMESPACE", a.Namespace}, {"K8S_POD_NAME", a.Name}, {"K8S_POD_UID", a.UID},
	} {
		if !isObjectName(v.value) {
			return Args{}, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_ARGS: %s=%.80q is no Kubernetes name", v.key, v.value), "")
		}
	}
	return a, nil
}

// unprintable holds for what a Kubernetes object name (RFC 1123 subdomain) can't contain and a file name, a set
// comment or a log line shouldn't.
func unprintable(r rune) bool {
	return r <= ' ' || r > '~' || strings.ContainsRune(`/\"'`, r)
}
