package nftables

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/attrs"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

// model is a model of the kernel in memory. It checks first packets of connections with rules in the kernel's form.
type model struct {
	of    lowered
	rules [len(conf.Families)]map[string][][]expression
	sets  [len(conf.Families)]map[string]set
}

func newModel(l lowered) *model {
	m := &model{of: l}
	for f, table := range l {
		m.rules[f], m.sets[f] = map[string][][]expression{}, map[string]set{}
		if table == nil {
			continue
		}
		for _, c := range table.chains {
			for _, r := range c.rules {
				written, _ := r.write(conf.Family(f))
				m.rules[f][c.Name] = append(m.rules[f][c.Name], expressionsIn(written.Expressions))
			}
		}
		for _, s := range table.sets {
			m.sets[f][s.Name] = s
		}
	}
	return m
}

// then returns a new model: the kernel after a transaction from m to the state l.
func (m *model) then(l lowered) *model {
	next := newModel(l)
	for f, table := range l {
		if table != nil && table.partial {
			next.of[f] = m.of[f].and(table)
			rules, sets := maps.Clone(m.rules[f]), maps.Clone(m.sets[f])
			maps.Copy(rules, next.rules[f])
			maps.Copy(sets, next.sets[f])
			next.rules[f], next.sets[f] = rules, sets
		}
	}
	return next
}

// and returns a table with the chains of t and of the table partial. If both have a chain of the same name, the result
// has the chain of partial. A partial table lacks the chains that stay as they are in the kernel.
func (t *table) and(partial *table) *table {
	all := &table{family: partial.family, chains: slices.Clone(partial.chains)}
	if t != nil {
		all.chains = slices.Concat(all.chains, slices.DeleteFunc(slices.Clone(t.chains), func(c chain) bool {
			return slices.ContainsFunc(partial.chains, func(k chain) bool { return k.Name == c.Name })
		}))
	}
	return all
}

// beforeNetworks returns the model of a moment during a transaction. m is the model before the transaction, and the
// parameter after is the model at its end. At this moment the new rules are in force, all old sets have their old
// elements, and new sets of networks are empty. The caller also passes the model at the end to allowsWhile (as the
// parameter later), so that look-ups find the new elements from some moment on.
func (m *model) beforeNetworks(after *model) *model {
	now := &model{of: after.of, rules: after.rules}
	for f := range now.sets {
		now.sets[f] = maps.Clone(m.sets[f])
		for name, s := range after.sets[f] {
			if _, ok := now.sets[f][name]; !ok && s.Layout == nftnl.Network {
				s.entries = ruleset.Entries{}
				now.sets[f][name] = s
			}
		}
	}
	return now
}

func (m *model) differsInNetworks(after *model) bool {
	for f, sets := range after.sets {
		for name, s := range sets {
			if s.Layout == nftnl.Network && !s.entries.Equal(m.sets[f][name].entries) {
				return true
			}
		}
	}
	return false
}

func (m *model) allows(p ruleset.Packet) bool {
	yes, _ := m.allowsWhile(p, nil, 0, 0)
	return yes
}

// allowsWhile reports whether a packet that is on its way during a transaction passes. The packet meets the rules of
// m. Its first look-ups find the elements of m, and all further look-ups find the elements of the model later. How
// many look-ups are first ones: for look-ups in sets of networks, the number is the parameter networks; for look-ups
// in all other sets, it is the parameter after. The result lookups is the number of look-ups that the packet has made.
func (m *model) allowsWhile(p ruleset.Packet, later *model, after, networks int) (yes bool, lookups int) {
	f := conf.FamilyOf(p.Dst)
	hook := uint32(unix.NF_INET_FORWARD)
	if p.Out == "" {
		hook = unix.NF_INET_LOCAL_IN
	}
	if m.of[f] == nil {
		return true, 0
	}
	for _, c := range m.of[f].chains {
		if c.Hook != nil && c.Hook.Number == hook {
			w := walk{model: m, Packet: p, family: f, later: later, after: after, networks: networks, lookups: lookups}
			w.network, w.transport = headers(p)
			verdict := w.chain(c.Name)
			lookups = w.lookups
			if verdict == unix.NFT_RETURN || verdict == 1 {
				continue
			}
			return false, lookups
		}
	}
	return true, lookups
}

func headers(p ruleset.Packet) (network, transport []byte) {
	proto := numberOf(p.Proto)
	if p.Dst.Is4() {
		network = make([]byte, 20)
		network[0], network[8], network[9] = 0x45, 64, proto
		copy(network[12:], p.Src.AsSlice())
		copy(network[16:], p.Dst.AsSlice())
	} else {
		network = make([]byte, 40)
		network[0], network[6], network[7] = 0x60, proto, 64
		copy(network[8:], p.Src.AsSlice())
		copy(network[24:], p.Dst.AsSlice())
	}
	transport = make([]byte, 64)
	switch proto {
	case unix.IPPROTO_ICMP:
		transport[0] = 8
	case unix.IPPROTO_ICMPV6:
		transport[0] = 128
	default:
		binary.BigEndian.PutUint16(transport, 40000)
		binary.BigEndian.PutUint16(transport[2:], p.Port)
		transport[13] = 0x02 // the flag SYN
	}
	return network, transport
}

type walk struct {
	*model
	ruleset.Packet
	family             conf.Family
	network, transport []byte
	registers          [64]byte
	later              *model // the model after the transaction; nil if there is no transaction
	after, networks    int
	lookups            int
}

// goesOn stands for no verdict: the walk continues with the next expression.
const goesOn = 1000

func (w *walk) chain(name string) int32 {
	rules, ok := w.rules[w.family][name]
	if !ok && w.later == nil { // a chain that the transaction makes may be missing: the packet finds no rules in it
		panic(fmt.Sprintf("there is no chain %s", name))
	}
	for _, expressions := range rules {
		verdict, chain := w.rule(expressions)
		switch verdict {
		case goesOn, unix.NFT_BREAK:
		case unix.NFT_GOTO:
			return w.chain(chain)
		case unix.NFT_JUMP:
			if v := w.chain(chain); v != unix.NFT_RETURN {
				return v
			}
		default:
			return verdict
		}
	}
	return unix.NFT_RETURN
}

type expression struct {
	name string
	data map[uint16][]byte
	// value is the compared value, or the mask. verdict and chain are those of an immediate expression.
	value   []byte
	verdict int32
	chain   string
}

func expressionsIn(rule []byte) (all []expression) {
	for _, one := range attrs.In(rule) {
		e := attrs.Map(one)
		name := attrs.Text(e[unix.NFTA_EXPR_NAME])
		x := expression{name: name, data: attrs.Map(e[unix.NFTA_EXPR_DATA])}
		switch name {
		case "cmp":
			x.value = dataIn(x.data[unix.NFTA_CMP_DATA])
		case "bitwise":
			x.value = dataIn(x.data[unix.NFTA_BITWISE_MASK])
		case "immediate":
			v := attrs.Map(attrs.Map(x.data[unix.NFTA_IMMEDIATE_DATA])[unix.NFTA_DATA_VERDICT])
			if code := v[unix.NFTA_VERDICT_CODE]; code != nil {
				x.verdict = int32(number(code))
			}
			x.chain = attrs.Text(v[unix.NFTA_VERDICT_CHAIN])
		}
		all = append(all, x)
	}
	return all
}

func (w *walk) rule(expressions []expression) (verdict int32, chain string) {
	for _, e := range expressions {
		if verdict, chain = w.expression(e); verdict != goesOn {
			return verdict, chain
		}
	}
	return goesOn, ""
}

func number(value []byte) uint32 { return binary.BigEndian.Uint32(value) }

func at(register []byte) int {
	if n := number(register); n < unix.NFT_REG32_00 {
		return int(n-unix.NFT_REG_1) * 16
	}
	return int(number(register)-unix.NFT_REG32_00) * 4
}

func dataIn(value []byte) []byte { return attrs.Map(value)[unix.NFTA_DATA_VALUE] }

func (w *walk) load(register, value []byte) (int32, string) {
	to := w.registers[at(register):]
	copy(to, value)
	for i := len(value); i%4 != 0; i++ {
		to[i] = 0
	}
	return goesOn, ""
}

func when(matches bool) (int32, string) {
	if matches {
		return goesOn, ""
	}
	return unix.NFT_BREAK, ""
}

func (w *walk) expression(e expression) (int32, string) {
	a := e.data
	switch e.name {
	case "meta":
		return w.load(a[unix.NFTA_META_DREG], w.meta(number(a[unix.NFTA_META_KEY])))
	case "ct":
		return w.load(a[unix.NFTA_CT_DREG], w.ct(number(a[unix.NFTA_CT_KEY])))
	case "payload":
		header := w.network
		if number(a[unix.NFTA_PAYLOAD_BASE]) == unix.NFT_PAYLOAD_TRANSPORT_HEADER {
			header = w.transport
		}
		from, length := number(a[unix.NFTA_PAYLOAD_OFFSET]), number(a[unix.NFTA_PAYLOAD_LEN])
		return w.load(a[unix.NFTA_PAYLOAD_DREG], header[from:from+length])
	case "cmp":
		c := bytes.Compare(w.registers[at(a[unix.NFTA_CMP_SREG]):][:len(e.value)], e.value)
		switch number(a[unix.NFTA_CMP_OP]) {
		case unix.NFT_CMP_EQ:
			return when(c == 0)
		case unix.NFT_CMP_NEQ:
			return when(c != 0)
		case unix.NFT_CMP_LT:
			return when(c < 0)
		case unix.NFT_CMP_LTE:
			return when(c <= 0)
		case unix.NFT_CMP_GT:
			return when(c > 0)
		}
		return when(c >= 0)
	case "bitwise":
		mask := e.value
		value := slices.Clone(w.registers[at(a[unix.NFTA_BITWISE_SREG]):][:len(mask)])
		for i := range value {
			value[i] &= mask[i]
		}
		return w.load(a[unix.NFTA_BITWISE_DREG], value)
	case "lookup":
		return w.lookup(a)
	case "immediate":
		return e.verdict, e.chain
	case "match": // the match physdev of xtables
		return when(string(bytes.TrimRight(a[unix.NFTA_MATCH_INFO][:unix.IFNAMSIZ], "\x00")) == w.InPort)
	case "counter", "log":
		return goesOn, ""
	}
	panic(fmt.Sprintf("unknown expression %s", e.name))
}

func (w *walk) meta(key uint32) []byte {
	link := func(name string) []byte { return append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...) }
	switch key {
	case unix.NFT_META_L4PROTO:
		return []byte{numberOf(w.Proto)}
	case unix.NFT_META_IIFNAME:
		return link(w.In)
	case unix.NFT_META_OIFNAME:
		return link(w.Out)
	}
	panic(fmt.Sprintf("unknown property %d", key))
}

func (w *walk) ct(key uint32) []byte {
	const stateNew = 1 << 3
	switch key {
	case unix.NFT_CT_STATE:
		return u32(stateNew)
	case unix.NFT_CT_STATUS:
		if w.Translated {
			return u32(statusDNAT)
		}
		return u32(0)
	case unix.NFT_CT_LABELS:
		return make([]byte, 16)
	}
	panic(fmt.Sprintf("unknown property %d of connections", key))
}

func (w *walk) lookup(a map[uint16][]byte) (int32, string) {
	name := string(bytes.TrimRight(a[unix.NFTA_LOOKUP_SET], "\x00"))
	s, ok := w.sets[w.family][name]
	after := w.after
	if ok && s.Layout == nftnl.Network {
		after = w.networks
	}
	if w.lookups++; w.later != nil && w.lookups > after {
		if now, found := w.later.sets[w.family][name]; found { // a deleted set keeps its elements for a while
			s, ok = now, true
		}
	}
	if !ok {
		panic(fmt.Sprintf("there is no set %s", name))
	}
	entry, found := s.has(w.registers[at(a[unix.NFTA_LOOKUP_SREG]):], w.family)
	if a[unix.NFTA_LOOKUP_DREG] != nil && found {
		v, _ := verdictIn(entry.Comment)
		return v.Code, v.Chain
	}
	not := a[unix.NFTA_LOOKUP_FLAGS] != nil && number(a[unix.NFTA_LOOKUP_FLAGS])&unix.NFT_LOOKUP_F_INV != 0
	return when(found != not)
}

func (s set) has(registers []byte, f conf.Family) (ruleset.Entry, bool) {
	e, ok := s.Layout.Element(tables[f].Family, registers)
	if !ok {
		return ruleset.Entry{}, false
	}
	key := entryOf(s.Layout, e).Element
	if s.Layout != nftnl.Network {
		words, ok := s.entries.Get(key)
		return ruleset.Entry{Element: key, Comment: words}, ok
	}
	for bits := key.Prefix.Bits(); bits >= 0; bits-- {
		key.Prefix = netip.PrefixFrom(key.Prefix.Addr(), bits).Masked()
		if words, ok := s.entries.Get(key); ok {
			return ruleset.Entry{Element: key, Comment: words}, true
		}
	}
	return ruleset.Entry{}, false
}
