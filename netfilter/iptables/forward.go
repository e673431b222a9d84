package iptables

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy/ruleset"
)

const forward = "FORWARD"

// AcceptInLegacy is for nodes with the backend nftables. If the chain FORWARD of iptables-legacy drops packets by
// default, AcceptInLegacy adds rules that accept pods' packets: before rules that refuse everything, or else at the
// end. Otherwise it removes such rules. If the programs of iptables-legacy are missing, problem says what a person can
// do.
//
// Equivalent to: iptables-legacy -A FORWARD RULE (ip6tables-legacy for IPv6)
func AcceptInLegacy(ctx context.Context, f conf.Family, rules []ruleset.Rule) (
	changed bool, problem string, err error,
) {
	there, _, err := Legacy.exists(f, "filter")
	if err != nil || !there {
		return false, "", err
	}
	for _, verb := range []string{"-save", "-restore"} {
		if _, missing := exec.LookPath(Legacy.program(f) + verb); missing != nil {
			problem, err = legacyProblem(f, len(rules) > 0)
			return false, problem, err
		}
	}
	out, err := Legacy.save(ctx, f, "filter")
	if err != nil {
		return false, "", err
	}
	commands := acceptCommands(out, f, rules)
	if commands == "" {
		return false, "", nil
	}
	r, err := startRestorer(Legacy, f)
	if err == nil {
		err = r.carryOut(ctx, commands)
	}
	if err != nil {
		return false, "", fmt.Errorf("accept packets of pods in chain %s of %s: %w", forward, Legacy.program(f), err)
	}
	return true, "", nil
}

// acceptCommands returns commands for iptables-restore that add the rules to the chain FORWARD, and remove weir's old
// rules there. saved is the output of iptables-save. The result is empty if the chain already has the rules.
func acceptCommands(saved string, f conf.Family, rules []ruleset.Rule) string {
	t := parseSave(saved)
	var own, foreign, want []string
	first := 0 // how many rules of other programs precede weir's first rule
	for _, line := range t.rules[forward] {
		if !strings.Contains(line, `--comment "`+netfilter.AcceptComment+`" -j ACCEPT`) {
			foreign = append(foreign, line)
			continue
		}
		if len(own) == 0 {
			first = len(foreign)
		}
		own = append(own, line)
	}
	at := t.refusesAt(foreign)
	if at < len(foreign) || strings.Contains("\n"+saved, "\n:"+forward+" DROP ") {
		for _, r := range rules {
			r.Action, r.Comment = ruleset.Accept, netfilter.AcceptComment
			want = append(want, ruleText(r, f))
		}
	}
	all := t.rules[forward]
	together := len(own) == 0 || slices.Equal(all[first:first+len(own)], own)
	if slices.Equal(own, want) && (len(own) == 0 || together && first == at) {
		return ""
	}
	var b strings.Builder
	b.WriteString("*filter\n")
	for _, line := range own {
		fmt.Fprintf(&b, "-D %s %s\n", forward, line)
	}
	for i, line := range want {
		fmt.Fprintf(&b, "-I %s %d %s\n", forward, at+i+1, line)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// legacyProblem returns a problem as text if the chain FORWARD of iptables-legacy drops packets by default, and no rule
// of the table names weir's bridge. It reads the table from the kernel, without a program.
func legacyProblem(f conf.Family, pods bool) (string, error) {
	t, err := readLegacy(f, "filter")
	if err != nil {
		return "", fmt.Errorf("read table filter of %s: %w", Legacy.program(f), err)
	}
	refuses, err := t.refuses(unix.NF_INET_FORWARD)
	if err != nil || !refuses || !pods || bytes.Contains(t.entries, []byte(conf.Bridge+"\x00")) {
		return "", err
	}
	accept := Legacy.program(f) + " -I " + forward
	return fmt.Sprintf("chain %s of %s drops forwarded packets of pods that no rule of it accepts, and the agent "+
		"lacks the program %s-restore: accept them with: %s -i %s -j ACCEPT; %s -o %s -j ACCEPT", forward,
		Legacy.program(f), Legacy.program(f), accept, conf.Bridge, accept, conf.Bridge), nil
}

// legacyDrop is the number of the verdict DROP in x_tables: -NF_DROP - 1 (net/ipv4/netfilter/ip_tables.c).
const legacyDrop = -1

// refuses reports whether the built-in chain refuses all packets that its earlier rules don't accept: by its policy, or
// by a rule without conditions. It doesn't follow jumps.
func (t *legacyTable) refuses(hook int) (bool, error) {
	for offset := t.Hooks[hook]; ; {
		e, err := t.entry(offset)
		if err != nil {
			return false, err
		}
		isPolicy := offset == t.Ends[hook]
		if isPolicy || e.always() && e.refuses() {
			return e.refuses(), nil
		}
		offset = e.next
	}
}

func (e legacyEntry) refuses() bool {
	name := text(e.target[nameOfTarget : sizeofTarget-1])
	verdict := int32(binary.NativeEndian.Uint32(e.target[sizeofTarget:]))
	return name == "REJECT" || name == "" && verdict == legacyDrop
}

// always reports whether the rule matches every packet: it has no condition except comments.
func (e legacyEntry) always() bool {
	const sizeofMatch = 32
	for rest := e.matches; len(rest) > 0; {
		size := 0
		if len(rest) >= sizeofMatch {
			size = int(binary.NativeEndian.Uint16(rest))
		}
		if size < sizeofMatch || size > len(rest) || text(rest[nameOfTarget:sizeofMatch-1]) != "comment" {
			return false
		}
		rest = rest[size:]
	}
	return bytes.Count(e.head, []byte{0}) == len(e.head)
}
