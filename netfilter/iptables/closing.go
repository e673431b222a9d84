package iptables

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
)

// closings returns two lists of rules, to be tried in order. The first drops all packets of pods. The second drops all
// packets that pass weir's bridge, and works even if the kernel refuses sets.
func closings(f conf.Family) [][]string {
	set := f.Set(conf.PodsSet)
	return [][]string{
		{"-m set --match-set " + set + " src -j DROP", "-m set --match-set " + set + " dst -j DROP"},
		{"-i " + conf.Bridge + " -j DROP", "-o " + conf.Bridge + " -j DROP"},
	}
}

// closeAll closes the node's pods if the kernel refuses weir's rules. If weir's chains that drop packets are complete,
// it only makes sure that the jumps to these chains are first. Otherwise it drops all packets of the node's pods, also
// those of established connections.
//
// These drops are equivalent to the following commands, once more with WEIR-INPUT and INPUT. If the kernel refuses
// sets, the rules match the bridge weir0 instead.
//
//	iptables -t mangle -N WEIR-FORWARD; iptables -t mangle -I FORWARD -j WEIR-FORWARD
//	iptables -t mangle -A WEIR-FORWARD -m set --match-set weir-pods src -j DROP
//	iptables -t mangle -A WEIR-FORWARD -m set --match-set weir-pods dst -j DROP
func (d *Driver) closeAll(ctx context.Context, have state, want *lowered) error {
	for _, f := range conf.Families {
		mangle := have.tables[f][checks]
		if !want.has(f) || mangle.unknown != nil { // no rules are wanted, or PutFirst handles the table that can't be read
			continue
		}
		attempts := [][]string{nil}
		if !mangle.stands(f, want) {
			attempts = closings(f)
		}
		var err error
		for _, drops := range attempts {
			if err = d.restore(ctx, closing(f, mangle, want, drops)); err == nil {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("close all pods: %w", err)
		}
	}
	return nil
}

func closing(f conf.Family, mangle table, want *lowered, drops []string) (commands [len(conf.Families)]string) {
	var lines []string
	for _, j := range want.jumps {
		if j.family != f || j.table != checks || !j.first {
			continue
		}
		if drops != nil && !slices.Equal(mangle.rules[j.to], drops) {
			lines = append(lines, ":"+j.to+" - [0:0]") // creates the chain, or empties it
			for _, rule := range drops {
				lines = append(lines, "-A "+j.to+" "+rule)
			}
		}
		if rules := mangle.rules[j.chain]; len(rules) == 0 || split(rules[0]).target != j.to {
			lines = append(lines, "-I "+j.chain+" 1 -j "+j.to)
		}
	}
	if len(lines) > 0 {
		commands[f] = "*" + checks + "\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
	}
	return commands
}
