package packettest

import (
	"context"
	"testing"
	"time"

	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/netfilter/nftables"
	"github.com/weir-net/weir/policy/ruleset"
)

// Backend has those methods of a backend that tests with real packets use.
type Backend interface {
	Apply(ctx context.Context, want ruleset.Ruleset, verify netfilter.Verify) (netfilter.Result, error)
	Remove(ctx context.Context) error
	Close()
}

// Name names a backend. iptables has two names, one for each flavour.
type Name string

const (
	IptablesLegacy Name = "iptables-legacy"
	IptablesNFT    Name = "iptables-nft"
	Nftables       Name = "nftables"
)

var Names = []Name{IptablesLegacy, IptablesNFT, Nftables}

func open(t testing.TB, name Name) Backend {
	t.Helper()
	var b Backend
	switch name {
	case Nftables:
		b = nftables.New()
	default:
		d, err := iptables.New(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d.Flavour = iptables.NFT; name == IptablesLegacy {
			d.Flavour = iptables.Legacy
		}
		b = d
	}
	return b
}

// Use removes the node's rules, and makes the named backend write all further rules.
func (n *Node) Use(name Name) {
	n.Helper()
	n.Remove()
	n.Close()
	n.Backend, n.Writer = open(n, name), name
}

// Remove removes the node's rules. It tries for a minute: a set counts as in use until nf_tables has freed the deleted
// rules that used it.
func (n *Node) Remove() {
	n.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		err := n.Backend.Remove(n.Context())
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.Fatal(err)
		}
	}
}
