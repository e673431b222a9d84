package iptables

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/attrs"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy/ruleset"
)

const forward = "FORWARD"

// LegacyForward keeps rules in the chains FORWARD of iptables-legacy, for backends with rules in nf_tables. Such a
// chain drops packets by default if its policy is DROP, or if one of its rules refuses everything. Then LegacyForward
// adds rules that accept the packets of pods: before the rule that refuses everything, or else at the end of the chain.
// If a chain drops nothing by default, LegacyForward removes its own rules. Only one goroutine may use it.
//
// It never waits for the lock of xtables: if another program has the lock, a later Keep tries again.
//
// Equivalent to: iptables-legacy -A FORWARD RULE (ip6tables-legacy for IPv6)
type LegacyForward struct {
	chains [len(conf.Families)]legacyForward
}

type legacyForward struct {
	known bool // true if Keep can skip the chain until the next Forget
	rules []ruleset.Rule
	print fingerprint // fingerprint of the table when it had the wanted rules; empty if unknown
	wrote bool        // true if Keep has changed weir's rules in the chain
	note  string      // why the chain still drops pods' packets
	again time.Time   // after a failure, the earliest time of the next try
}

// legacyTime limits how long one Keep may run programs. After a failure, Keep waits for legacyPause before it tries
// again.
const (
	legacyTime  = 3 * time.Second
	legacyPause = time.Second
)

// Keep makes sure that the family's chain FORWARD has the rules if the chain drops packets by default. Otherwise it
// removes weir's rules from the chain. If the rules are the same as in the last call, Keep does nothing in two cases:
// it knows that the chain is right, or the last call failed less than legacyPause ago. repaired is true if the wanted
// rules are the same as before, but Keep has changed weir's rules in the chain again: another program has changed the
// chain. If Keep fails, Notes has the reason. The chain may then drop pods' packets, but no packet passes that the
// policies deny.
func (l *LegacyForward) Keep(ctx context.Context, f conf.Family, rules []ruleset.Rule) (repaired bool) {
	c := &l.chains[f]
	same := slices.EqualFunc(c.rules, rules, ruleset.Rule.Equal)
	if same && (c.known || time.Now().Before(c.again)) {
		return false
	}
	if !same {
		c.rules, c.print = slices.Clone(rules), ""
	}
	changed, err := c.keep(ctx, f)
	repaired = changed && c.wrote && same
	c.known, c.wrote = err == nil, c.wrote || changed
	if err != nil {
		c.note = fmt.Sprintf("accept packets of pods in chain %s of %s: %v", forward, Legacy.program(f), err)
		c.again = time.Now().Add(legacyPause)
	}
	return repaired
}

// Forget makes the next Keep of each family look at the table again. The caller must call Forget from time to time,
// because the kernel reports no changes of legacy tables.
func (l *LegacyForward) Forget() {
	for f := range l.chains {
		l.chains[f].known = false
	}
}

// Notes say which chains still drop pods' packets, and what a person can do.
func (l *LegacyForward) Notes() (all []netfilter.Note) {
	for _, c := range l.chains {
		if c.note != "" {
			all = append(all, netfilter.Note{About: "host firewall", Message: c.note})
		}
	}
	return all
}

// Remove removes weir's rules from the chains FORWARD of iptables-legacy. It fails if another program has the lock of
// xtables.
func (l *LegacyForward) Remove(ctx context.Context) error {
	var errs []error
	for _, f := range conf.Families {
		_, err := (&legacyForward{}).keep(ctx, f)
		errs = append(errs, err)
	}
	*l = LegacyForward{}
	return errors.Join(errs...)
}

func (c *legacyForward) keep(ctx context.Context, f conf.Family) (changed bool, err error) {
	there, err := legacyExists(f, "filter")
	if err != nil || !there {
		c.print, c.note = "", ""
		return false, err
	}
	now, _, err := legacyPrint(f, "filter")
	if err != nil {
		return false, err
	}
	c.note = ""
	if now == c.print {
		return false, nil
	}
	c.print = ""
	for _, verb := range []string{"-save", "-restore"} {
		if _, missing := exec.LookPath(Legacy.program(f) + verb); missing != nil {
			c.note, err = legacyProblem(f, len(c.rules) > 0)
			return false, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, legacyTime)
	defer cancel()
	out, err := Legacy.save(ctx, f, "filter")
	if err != nil {
		return false, err
	}
	commands := acceptCommands(out, f, c.rules)
	if commands == "" {
		c.print = now
		return false, nil
	}
	if err := lockIsFree(); err != nil {
		return false, err
	}
	r, err := startRestorer(Legacy, f, "1")
	if err != nil {
		return false, err
	}
	err = r.carryOut(ctx, commands)
	return err == nil, err
}

// xtablesLock is the file that programs of iptables-legacy lock while they change a table.
const xtablesLock = "/run/xtables.lock"

var errLocked = fmt.Errorf("another program has locked %s (fuser -v %s names it)", xtablesLock, xtablesLock)

// lockIsFree returns an error if another program has the lock of xtables. Without this check, iptables-legacy-restore
// would wait for the lock for at least a second.
//
// Equivalent to: flock --nonblock /run/xtables.lock true
func lockIsFree() error {
	file, err := os.Open(xtablesLock)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // closing also unlocks
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errLocked
	}
	return err
}

// keepForward makes sure that the chain FORWARD of iptables-legacy accepts pods' packets of these families. Otherwise
// this chain could drop packets that the rules in nf_tables allow.
func (d *Driver) keepForward(ctx context.Context, r ruleset.Ruleset, families []conf.Family) (repaired bool) {
	if d.Flavour != NFT {
		return false
	}
	for _, f := range families {
		var rules []ruleset.Rule
		if r.Has(f) {
			rules = netfilter.Accepted(chainedIn(r, f))
		}
		lost := d.forward.Keep(ctx, f, rules)
		repaired = repaired || lost
	}
	return repaired
}

func chainedIn(r ruleset.Ruleset, f conf.Family) ruleset.Entries {
	for _, s := range r.Sets {
		if s.Name == f.Set(conf.ChainedSet) {
			return s.Entries
		}
	}
	return ruleset.Entries{}
}

// accepts reports whether a line of iptables-save is one of weir's rules in the chain FORWARD.
func accepts(line string) bool {
	return strings.Contains(line, `--comment "`+netfilter.AcceptComment+`" -j ACCEPT`)
}

// acceptCommands returns commands for iptables-restore that add the rules to the chain FORWARD, and remove weir's old
// rules there. If the chain drops no packets by default, the commands only remove weir's rules. saved is the output of
// iptables-save. The result is empty if nothing must change.
func acceptCommands(saved string, f conf.Family, rules []ruleset.Rule) string {
	t := parseSave(saved)
	var own, foreign, want []string
	first := 0 // how many rules of other programs precede weir's first rule
	for _, line := range t.rules[forward] {
		if !accepts(line) {
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

// legacyProblem returns a message if the chain FORWARD of iptables-legacy drops packets by default, and no rule of the
// table names weir's bridge. It returns "" if the parameter pods is false: then the node has no pods whose packets the
// chain could drop. It reads the table from the kernel, because the programs of iptables-legacy may be missing.
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

// refuses reports whether the chain refuses every packet that none of its rules accepts. Then the chain's policy, or a
// rule without conditions, refuses these packets. refuses doesn't follow jumps.
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
	name := attrs.Text(e.target[nameOfTarget : sizeofTarget-1])
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
		if size < sizeofMatch || size > len(rest) || attrs.Text(rest[nameOfTarget:sizeofMatch-1]) != "comment" {
			return false
		}
		rest = rest[size:]
	}
	return bytes.Count(e.head, []byte{0}) == len(e.head)
}
