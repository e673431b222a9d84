package explain

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weir-net/weir/policy/ruleset"
)

func TestParse(t *testing.T) {
	pod := func(namespace, name string) Ref { return Ref{Kind: EndNamed, Namespace: namespace, Name: name} }
	for _, tc := range []struct {
		from, to string
		want     Query
	}{
		{"ns-1/a", "ns-1/b:80", Query{pod("ns-1", "a"), pod("ns-1", "b"), Port{Number: 80, Proto: ruleset.TCP}}},
		{"a", "b:dns/UDP", Query{pod("", "a"), pod("", "b"), Port{Name: "dns", Proto: ruleset.UDP}}},
		{"world", "svc/ns-1/b", Query{Ref{Kind: EndWorld}, Ref{Kind: EndService, Namespace: "ns-1", Name: "b"}, Port{}}},
		{
			"node/n1.example", "10.0.0.1:65535/sctp", Query{
				Ref{Kind: EndNode, Name: "n1.example"},
				Ref{Kind: EndAddress, Address: netip.MustParseAddr("10.0.0.1")},
				Port{Number: 65535, Proto: ruleset.SCTP},
			},
		},
		{
			"fd00::1", "[fd00::2]:80", Query{
				Ref{Kind: EndAddress, Address: netip.MustParseAddr("fd00::1")},
				Ref{Kind: EndAddress, Address: netip.MustParseAddr("fd00::2")},
				Port{Number: 80, Proto: ruleset.TCP},
			},
		},
		{"pod/ns-1/a", "pod/b:/icmp", Query{ // pod "b" of a namespace with the name "pod"
			Ref{Kind: EndPod, Namespace: "ns-1", Name: "a"}, pod("pod", "b"), Port{Proto: ruleset.ICMP},
		}},
		{
			"::ffff:10.0.0.1", "svc/b", Query{
				Ref{Kind: EndAddress, Address: netip.MustParseAddr("10.0.0.1")}, pod("svc", "b"), Port{},
			},
		},
	} {
		got, err := Parse(tc.from, tc.to, "")
		if diff := cmp.Diff(tc.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" || err != nil {
			t.Errorf("%s %s: %v\n%s", tc.from, tc.to, err, diff)
		}
	}
	got, err := Parse("a", "svc/b:80", "ns-1")
	if err != nil || got.From.Namespace != "ns-1" || got.To.Kind != EndService || got.To.Namespace != "ns-1" {
		t.Errorf("with a namespace: %+v, %v", got, err)
	}
}

func TestParseErrors(t *testing.T) {
	const forms = "an end is NAMESPACE/POD, svc/NAMESPACE/SERVICE, an address, node/NAME or world"
	for to, want := range map[string]string{
		"":                          `"" is no name: ` + forms,
		"a/b/c":                     `"a/b/c": ` + forms,
		"/b:80":                     `"/b" is no name: ` + forms,
		"ns/B:80":                   `"ns/B" is no name: ` + forms,
		"node/":                     `"node/" is no name: ` + forms,
		"node/a/b":                  `"node/a/b": write a node as node/NAME`,
		"ns/b:0":                    "port 0 is out of range: 1 to 65535",
		"ns/b:65536":                "port 65536 is out of range: 1 to 65535",
		"ns/b:-1":                   "port -1 is out of range: 1 to 65535",
		"ns/b:99999999999999":       "port 99999999999999 is out of range: 1 to 65535",
		"ns/b:99999999999999999999": "port 99999999999999999999 is out of range: 1 to 65535",
		"ns/b:":                     `":": a port must follow the colon`,
		"ns/b:/udp":                 `":/udp": a port must follow the colon`,
		"ns/b:80/tpc":               `protocol "tpc": must be TCP, UDP, SCTP or ICMP`,
		"ns/b:80/icmp":              `":80/icmp": ICMP has no ports: write :/icmp`,
		"ns/b:+80":                  `"+80" is no port: write a number from 1 to 65535, or the name of a port`,
		"ns/b:HTTP":                 `"HTTP" is no port: write a number from 1 to 65535, or the name of a port`,
		"[fd00::1":                  `"[fd00::1": write an IPv6 address with a port as [ADDRESS]:PORT`,
		"[fd00::1]80":               `"[fd00::1]80": write an IPv6 address with a port as [ADDRESS]:PORT`,
		"::ffff:10.0.0.1:80":        `"::ffff:10.0.0.1:80": write an IPv6 address with a port as [ADDRESS]:PORT`,
		"fd00:1:2:3:4:5:6:7:80/udp": `"fd00:1:2:3:4:5:6:7:80/udp": write an IPv6 address with a port as [ADDRESS]:PORT`,
		"127.0.0.1:80":              `"127.0.0.1" is a loopback address: packets to it never leave the pod or the node`,
		"[::1]:80":                  `"::1" is a loopback address: packets to it never leave the pod or the node`,
		"[::ffff:127.0.0.1]": `"::ffff:127.0.0.1" is a loopback address: ` +
			"packets to it never leave the pod or the node",
		"0.0.0.0:80":   `"0.0.0.0" is not the address of one host`,
		"fe80::1%eth0": `"fe80::1%eth0" is not the address of one host`,
		"224.0.0.1":    `"224.0.0.1" is not the address of one host`,

		"255.255.255.255:67/udp": `"255.255.255.255" is not the address of one host`,
		"10.0.0.0/8":             `"10.0.0.0/8" is a network: name one address of it`,
		"ns/\x1b[2Jb":            `"ns/\x1b[2Jb" is no name: ` + forms,
	} {
		_, err := Parse("ns/a", to, "")
		var input *InputError
		if err == nil || err.Error() != want || !errors.As(err, &input) {
			t.Errorf("%q: %v, want %s", to, err, want)
		}
	}
}

// FuzzParse: whatever the arguments, Parse doesn't panic, and an error is one printable line. If the text of a parsed
// end is parsed again, it gives the same end.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"ns/b:80/udp", "[fd00::1]:80", "node/n", "world", "svc/a/b:x", "10.0.0.1", ":/icmp"} {
		f.Add("ns/a", s, "")
	}
	f.Fuzz(func(t *testing.T, from, to, namespace string) {
		q, err := Parse(from, to, namespace)
		if err != nil {
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%q", err)
			}
			return
		}
		if p := q.Port; p.Number != 0 && p.Name != "" {
			t.Errorf("both a number and a name: %+v", p)
		}
		for _, r := range []Ref{q.From, q.To} {
			again, err := parseEnd(r.String(), r.Namespace)
			if r.Kind == EndPod { // the text of a pod has no prefix, so parseEnd returns EndNamed
				r.Kind = EndNamed
			}
			// If a pod's namespace has the name of a kind, such as svc, the text means an end of that kind.
			if r.Kind == EndNamed && r.Namespace != "" && again.Kind != EndNamed {
				continue
			}
			if err != nil || again != r {
				t.Errorf("%+v is %q, which is %+v, %v", r, r, again, err)
			}
		}
	})
}

func TestNearest(t *testing.T) {
	names := []string{"ns-1/http-echo", "ns-1/web-7d9f-x2x1z", "ns-1/web-7d9f-abcde", "ns-2/db", "ns-1/busybox"}
	for want, near := range map[string]string{
		"ns-1/http-ehco": "ns-1/http-echo",
		"ns-1/web":       "ns-1/web-7d9f-abcde ns-1/web-7d9f-x2x1z",
		"ns-1/db":        "ns-2/db",
		"other/nothing":  "",
	} {
		if got := strings.Join(nearest(want, names), " "); got != near {
			t.Errorf("%s: %q, want %q", want, got, near)
		}
	}
	if d := distance("kitten", "sitting"); d != 3 {
		t.Errorf("distance %d", d)
	}
}
