package nftables

import (
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

// tableName is the name of weir's tables: one of the family ip, and one of ip6.
const tableName = "weir"

const tableComment = "weir: network policies of this node's pods"

// tables are weir's tables.
var tables = [len(conf.Families)]nftnl.Table{
	conf.IPv4: {Family: unix.NFPROTO_IPV4, Name: tableName},
	conf.IPv6: {Family: unix.NFPROTO_IPV6, Name: tableName},
}

// held is what the kernel has of a table.
type held struct {
	exists bool
	off    bool // another program has switched the table off
	sets   map[string]heldSet
	// chains are what identifies the rules of each chain. A chain without rules is among them if it is known.
	chains map[string][]nftnl.Sum
	// hooks are the chains with a hook that the ruleset has at another hook, or whose policy is another.
	misplaced []string
}

// heldSet is what the kernel has of a set.
type heldSet struct {
	layout nftnl.Layout
	// unknown is true if the set has a layout that no set of weir's has.
	unknown bool
	// odd is true if the set has elements that no set of its layout has.
	odd     bool
	entries ruleset.Entries
}

// state is what the kernel has of weir's tables.
type state [len(conf.Families)]held

func newHeld() held { return held{sets: map[string]heldSet{}, chains: map[string][]nftnl.Sum{}} }
