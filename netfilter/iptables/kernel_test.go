package iptables

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// model is a model of the kernel in memory. It makes a plan's changes, as the driver does in the kernel. It checks the
// first packets of connections with its rules and sets.
type model struct {
	testing.TB
	state
	parsed [len(conf.Families)]map[string]modelRule // parsed rules by their text
}

func newModel(t testing.TB) *model {
	m := &model{TB: t, state: state{sets: map[string]set{}}}
	for _, f := range conf.Families {
		m.parsed[f] = map[string]modelRule{}
		m.tables[f] = tables{}
		for _, name := range tablesUsed {
			m.tables[f][name] = withBuiltin(name, parseSave(""))
		}
	}
	return m
}

func (m *model) plan(p plan, after func(step string)) {
	for _, s := range p.create {
		m.sets[s.Name] = set{kind: s.Kind, family: s.Family, entries: s.Entries}
	}
	after("create")
	for i, c := range slices.Concat(p.before, p.across) {
		m.change(c)
		after(fmt.Sprint("before ", i, ": ", c))
	}
	for _, f := range conf.Families {
		m.restore(f, p.restore[f])
		after(fmt.Sprint("restore ", f))
	}
	for i, c := range p.after {
		m.change(c)
		after(fmt.Sprint("after ", i, ": ", c))
	}
	for _, name := range p.destroy {
		delete(m.sets, name)
	}
	after("destroy")
}

func (m *model) change(c change) {
	s := m.sets[c.set]
	if s.entries = s.entries.Without(c.Element); !c.del {
		s.entries = s.entries.With(c.Entry)
	}
	m.sets[c.set] = s
}

func (m *model) restore(f conf.Family, commands string) {
	m.Helper()
	var t table
	for line := range strings.Lines(commands) {
		line = strings.TrimSuffix(line, "\n")
		word, rest, _ := strings.Cut(line, " ")
		chain, rule, _ := strings.Cut(rest, " ")
		switch {
		case word == "COMMIT":
		case word[0] == '*':
			t = m.tables[f][word[1:]]
			t.numbers, t.rules = nil, maps.Clone(t.rules)
			m.tables[f] = maps.Clone(m.tables[f])
			m.tables[f][word[1:]] = t
		case word[0] == ':':
			t.rules[word[1:]] = nil
		case word == "-A":
			t.rules[chain] = append(slices.Clip(t.rules[chain]), rule)
		case word == "-X":
			if delete(t.rules, chain); len(rule) > 0 {
				m.Fatalf("%q", line)
			}
		case word == "-I":
			at, rule, _ := strings.Cut(rule, " ")
			n, err := strconv.Atoi(at)
			if err != nil {
				m.Fatalf("%q: %v", line, err)
			}
			t.rules[chain] = slices.Insert(slices.Clone(t.rules[chain]), n-1, rule)
		case word == "-D":
			i := slices.Index(t.rules[chain], rule)
			t.rules[chain] = slices.Delete(slices.Clone(t.rules[chain]), i, i+1)
		default:
			m.Fatalf("%q", line)
		}
	}
}

const foreign uint32 = 0xffffffff

func (m *model) allows(p ruleset.Packet) bool {
	m.Helper()
	passes := m.allowsWith(0, p)
	if m.allowsWith(foreign, p) != passes {
		m.Fatalf("%+v passes: %v; with another program's mark, that differs", p, passes)
	}
	return passes
}

// allowsWith reports whether a packet with this mark passes. The test fails if the packet leaves with the number of a
// class in its mark, or if other bits of the mark have changed.
func (m *model) allowsWith(mark uint32, p ruleset.Packet) bool {
	m.Helper()
	chain := "FORWARD"
	if p.Out == "" {
		chain = "INPUT"
	}
	w := walk{model: m, Packet: p, family: conf.FamilyOf(p.Dst), mark: mark}
	if w.chain(chain) == "DROP" {
		return false
	}
	if changed := mark ^ w.mark; changed&^markField != 0 || w.mark&markField != 0 && (w.numbered || changed != 0) {
		m.Fatalf("%+v came with mark %#x and leaves with %#x", p, mark, w.mark)
	}
	return true
}

type walk struct {
	*model
	ruleset.Packet
	family   conf.Family
	mark     uint32
	numbered bool // true if a rule has written the number of a class to the mark
	logged   bool // true if a rule has copied the packet to the log group
}

func (w *walk) chain(name string) string {
	rules, ok := w.tables[w.family][checks].rules[name]
	if !ok {
		w.Fatalf("there is no chain %s", name)
	}
	for _, line := range rules {
		r := w.parse(line)
		if slices.ContainsFunc(r.conditions, func(c condition) bool { return c.match(w) == c.not }) {
			continue
		}
		switch r.target {
		case "DROP", "RETURN":
			return r.target
		case "NFLOG":
			w.logged = true
		case "MARK":
			value, mask := twoNumbers(r.options[1])
			w.mark = w.mark&^mask ^ value
		case "SET":
			w.number(r.options[1], r.options[2])
		default:
			if verdict := w.chain(r.target); verdict == "DROP" || r.goes {
				return verdict
			}
		}
	}
	return "RETURN"
}

func (w *walk) number(name, by string) {
	addr := map[string]netip.Addr{"src": w.Src, "dst": w.Dst}[by]
	e := ruleset.Entry{Element: ruleset.Element{Prefix: netip.PrefixFrom(addr, addr.BitLen())}}
	s, ok := w.sets[name]
	if !ok || s.kind != numberedPods {
		w.Fatalf("there is no set %s of numbered pods", name)
	}
	if e.Comment, ok = s.entries.Get(e.Element); ok {
		mark := entryOf(e, name).Mark
		w.mark, w.numbered = w.mark&^mark.Mask|mark.Value, true
	}
}

type modelRule struct {
	conditions []condition
	target     string
	goes       bool
	options    []string // options of the target
}

type condition struct {
	not   bool
	match func(w *walk) bool
}

func (w *walk) parse(line string) modelRule {
	if r, ok := w.parsed[w.family][line]; ok {
		return r
	}
	var r modelRule
	not := false
	for all := words(line); len(all) > 0; {
		word := all[0]
		switch word {
		case "!":
			not, all = true, all[1:]
			continue
		case "-m", "--comment":
			all = all[2:]
			continue
		case "-j", "-g":
			r.target, r.goes, r.options = all[1], word == "-g", all[2:]
			w.parsed[w.family][line] = r
			return r
		}
		take := 2
		if word == "--match-set" || word == "--tcp-flags" {
			take = 3
		}
		r.conditions = append(r.conditions, condition{not, w.matcher(word, all[1:take])})
		not, all = false, all[take:]
	}
	w.Fatalf("%q has no target", line)
	return r
}

func twoNumbers(text string) (value, mask uint32) {
	if _, err := fmt.Sscanf(text, "0x%x/0x%x", &value, &mask); err != nil {
		panic(err)
	}
	return value, mask
}

func (w *walk) matcher(option string, values []string) func(w *walk) bool {
	value := values[0]
	always := func(is bool) func(*walk) bool { return func(*walk) bool { return is } }
	switch option {
	case "-s", "-d":
		prefix := netip.MustParsePrefix(value)
		return func(w *walk) bool { return prefix.Contains(map[string]netip.Addr{"-s": w.Src, "-d": w.Dst}[option]) }
	case "-i":
		return func(w *walk) bool { return w.In == value }
	case "-o":
		return func(w *walk) bool { return w.Out == value }
	case "--physdev-in":
		return func(w *walk) bool { return w.InPort == value }
	case "-p":
		numbers := map[string]string{"icmp": "1", "ipv6-icmp": "58"}
		return func(w *walk) bool { return string(w.Proto) == value || string(w.Proto) == numbers[value] }
	case "--dport", "--dports":
		var ranges []ruleset.PortRange
		for _, r := range strings.Split(value, ",") {
			first, last, ok := strings.Cut(r, ":")
			if !ok {
				last = first
			}
			a, _ := strconv.Atoi(first)
			b, _ := strconv.Atoi(last)
			ranges = append(ranges, ruleset.PortRange{First: uint16(a), Last: uint16(b)})
		}
		return func(w *walk) bool {
			return slices.ContainsFunc(ranges, func(r ruleset.PortRange) bool { return r.First <= w.Port && w.Port <= r.Last })
		}
	case "--mark":
		v, mask := twoNumbers(value)
		return func(w *walk) bool { return w.mark&mask == v }
	case "--match-set":
		return func(w *walk) bool { return w.inSet(value, values[1]) }
	case "--ctstate":
		return func(w *walk) bool { return value == "DNAT" && w.Translated }
	case "--tcp-flags": // the first packet of a TCP connection has the flag SYN and no other
		return always(true)
	case "--ctstatus": // the kernel confirms a connection when its first packet leaves the last hook
		return always(value != "CONFIRMED")
	case "--label", "--icmpv6-type":
		return always(false)
	case "--hl-eq":
		return always(true)
	case "--bytecode":
		for shape, program := range programs[w.family] {
			if program == value {
				return func(w *walk) bool { return shape != ruleset.ToItself || w.Src == w.Dst }
			}
		}
	}
	w.Fatalf("unknown option %s %v", option, values)
	return nil
}

func (w *walk) inSet(name, by string) bool {
	s, ok := w.sets[name]
	if !ok {
		w.Fatalf("there is no set %s", name)
	}
	addr := w.Src
	if strings.HasPrefix(by, "dst") {
		addr = w.Dst
	}
	e := ruleset.Element{Prefix: netip.PrefixFrom(addr, addr.BitLen())}
	switch s.kind {
	case ruleset.Ports:
		e = ruleset.Element{Port: w.Port}
	case ruleset.AddressPorts:
		e.Proto, e.Port = w.Proto, w.Port
	case ruleset.Networks, ruleset.AddressLinks:
		for n := range s.entries.All() {
			if n.Prefix.Contains(addr) && (n.Link == "" || n.Link == w.In) {
				return true
			}
		}
		return false
	}
	_, ok = s.entries.Get(e)
	return ok
}
