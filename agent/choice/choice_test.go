package choice

import (
	"slices"
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
)

const (
	none = conf.Backend("")
	ipt  = conf.Iptables
	nft  = conf.Nftables
)

// TestChoose: if the backend that kube-proxy uses works, it is chosen. Otherwise Choose returns a backend that works.
// The backend that the node used before decides only if kube-proxy's backend is unknown.
func TestChoose(t *testing.T) {
	for _, tc := range []struct {
		name               string
		nftables, iptables bool
		newest, previous   conf.Backend
		lack               []conf.Backend // the backends that don't work
		want               conf.Backend
		reason             string // a text that the reason must contain
	}{
		{"in nftables", true, false, none, none, nil, nft, "kube-proxy uses nftables"},
		{"in nftables, after iptables", true, false, none, ipt, nil, nft, "kube-proxy uses nftables"},
		{"in nftables, which lacks something", true, false, none, none, list(nft), ipt, "nftables can't be used"},
		{"in nftables, without ipset", true, false, none, none, list(ipt), nft, "kube-proxy uses nftables"},
		{"in nftables, and neither works", true, false, none, nft, list(nft, ipt), none, "iptables can't be used"},
		{"in iptables", false, true, none, none, nil, ipt, "kube-proxy uses iptables"},
		{"in iptables, after nftables", false, true, none, nft, nil, ipt, "kube-proxy uses iptables"},
		{"in iptables, without ipset", false, true, none, none, list(ipt), nft, "iptables can't be used, the node lacks: x"},
		{"in iptables, without ipset, as before", false, true, none, nft, list(ipt), nft, "iptables can't be used"},
		{"in iptables, and neither works", false, true, none, none, list(nft, ipt), none, "nftables can't be used"},
		{"in none", false, false, none, none, nil, ipt, "kube-proxy has no rules"},
		{"in none, without ipset", false, false, none, none, list(ipt), nft, "iptables can't be used"},
		{"in none, and neither works", false, false, none, none, list(nft, ipt), none, "nftables can't be used"},
		{"in none, after iptables", false, false, none, ipt, nil, ipt, "used iptables before"},
		{"in none, after nftables", false, false, none, nft, nil, nft, "used nftables before"},
		{"in none, after nftables, which now lacks something", false, false, none, nft, list(nft), ipt, "nftables can't"},
		{"in none, after iptables, which now lacks something", false, false, none, ipt, list(ipt), nft, "iptables can't"},
		{"in both, nftables newest", true, true, nft, ipt, nil, nft, "it uses nftables now"},
		{"in both, iptables newest", true, true, ipt, nft, nil, ipt, "it uses iptables now"},
		{"in both, iptables newest, without ipset", true, true, ipt, ipt, list(ipt), nft, "iptables can't be used"},
		{"in both, not known which is newest, after iptables", true, true, none, ipt, nil, ipt, "used iptables before"},
		{"in both, not known which is newest, after nftables", true, true, none, nft, nil, nft, "used nftables before"},
		{"in both, nothing known", true, true, none, none, nil, nft, "in nftables and in iptables"},
	} {
		got := Choose(Seen{Nftables: tc.nftables, Iptables: tc.iptables, Newest: tc.newest, Lacks: lacking(tc.lack)},
			tc.previous)
		if got.Backend != tc.want || !strings.Contains(got.Reason, tc.reason) {
			t.Errorf("%s: chose %q: %s; want %q: %s", tc.name, got.Backend, got.Reason, tc.want, tc.reason)
		}
	}
}

// TestChooseTriesOnlyWhatItMayChoose: if kube-proxy's backend works, Choose doesn't try a second backend. A trial
// costs time, and it changes the kernel for a moment.
func TestChooseTriesOnlyWhatItMayChoose(t *testing.T) {
	var tried []conf.Backend
	Choose(Seen{Nftables: true, Lacks: func(b conf.Backend) []string {
		tried = append(tried, b)
		return nil
	}}, none)
	if !slices.Equal(tried, list(nft)) {
		t.Errorf("Choose tried %q", tried)
	}
}

func TestAppeared(t *testing.T) {
	in := func(nftables, iptables bool) Seen { return Seen{Nftables: nftables, Iptables: iptables} }
	for _, tc := range []struct {
		before, now Seen
		last, want  conf.Backend
	}{
		{in(false, true), in(true, true), none, nft},
		{in(true, false), in(true, true), none, ipt},
		{in(true, true), in(true, true), nft, nft},
		{in(true, true), in(true, true), none, none}, // kube-proxy moved before the first look: its backend is unknown
		{in(false, false), in(true, true), ipt, none},
		{in(true, true), in(false, true), nft, nft},
		{in(false, true), in(true, false), ipt, nft},
	} {
		if got := Appeared(tc.before, tc.now, tc.last); got != tc.want {
			t.Errorf("after %+v came %+v, %q before: %q, want %q", tc.before, tc.now, tc.last, got, tc.want)
		}
	}
}

func list(all ...conf.Backend) []conf.Backend { return all }

func lacking(all []conf.Backend) func(conf.Backend) []string {
	return func(b conf.Backend) []string {
		if slices.Contains(all, b) {
			return []string{"x", "y"}
		}
		return nil
	}
}
