package verdict_test

import (
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
	"github.com/weir-net/weir/source/manifests"
)

// TestString: the text of a verdict names the policies, rules, peers and ports that have decided.
func TestString(t *testing.T) {
	data, err := os.ReadFile("../testdata/named-ports.yaml")
	if err != nil {
		t.Fatal(err)
	}
	objects, err := manifests.Parse("named-ports.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	at := func(name, addr string, e conf.Enforcement) policy.Endpoint {
		return policy.Endpoint{
			Pod:         policy.PodRef{Namespace: "shop", Name: name},
			Enforcement: e,
			Addresses:   []policy.Address{{Addr: netip.MustParseAddr(addr)}},
		}
	}
	evaluator := verdict.New(policy.State{Objects: objects, Endpoints: []policy.Endpoint{
		at("client", "10.88.0.5", conf.Strict), at("new", "10.88.0.3", conf.Strict),
		at("off", "10.88.0.8", conf.Off), at("nobody", "10.88.0.9", conf.Strict),
	}})
	for _, tc := range []struct {
		src, dst string
		port     uint16
		want     string
	}{
		{"10.88.0.5", "10.88.0.3", 8080, `tcp from 10.88.0.5 to 10.88.0.3 port 8080: allowed
egress: allowed: shop/client is isolated by
  shop/out
    egress[0] allows it: egress[0].to[0], egress[0].ports[0]
    egress[1]: everyone matches, but no port
ingress: allowed: shop/new is isolated by
  shop/in
    ingress[0] allows it: ingress[0].from[0], ingress[0].ports[0]
    ingress[1]: everyone matches, but no port
`},
		{"10.88.1.4", "10.88.0.3", 443, `tcp from 10.88.1.4 to 10.88.0.3 port 443: dropped
egress: allowed: no policy isolates shop/far
ingress: dropped: shop/new is isolated by
  shop/in
    ingress[0]: no peer matches
    ingress[1]: everyone matches, but no port
`},
		{"10.88.0.9", "10.88.0.8", 0, `tcp from 10.88.0.9 to 10.88.0.8: dropped
egress: dropped: shop/nobody is not known yet
ingress: allowed: enforcement is off for shop/off
`},
		{"10.88.0.5", "10.88.0.5", 80, `tcp from 10.88.0.5 to 10.88.0.5 port 80: allowed
a pod always reaches itself
`},
		{"10.88.0.5", "192.0.2.9", 80, `tcp from 10.88.0.5 to 192.0.2.9 port 80: dropped
egress: dropped: shop/client is isolated by
  shop/out
    egress[0]: no peer and no port matches
    egress[1]: everyone matches, but no port
ingress: allowed: not a pod
`},
	} {
		v := evaluator.Evaluate(verdict.Packet{
			Src:   netip.MustParseAddr(tc.src),
			Dst:   netip.MustParseAddr(tc.dst),
			Proto: ruleset.TCP,
			Port:  tc.port,
		})
		if diff := cmp.Diff(tc.want, v.String()); diff != "" {
			t.Errorf("%s to %s: -want +got\n%s", tc.src, tc.dst, diff)
		}
	}
}
