// Package drops counts dropped packets of the same kind together, keeps the last counts, and hands new counts to
// clients. Package agent gives it the packets, and finds the names of their senders and receivers.
//
// Invariants:
//   - The memory is bounded, whatever packets come and whatever clients do.
//   - No count is lost: a packet that isn't shown is counted as left out.
//   - A slow client delays neither the packets nor other clients. It hears how many packets it has missed.
//   - A sender gets a limited number of lines a second, so its flood hides no other sender's drops. If there are more
//     senders than accounts, some senders share an account.
package drops

import (
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"time"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/netfilter/nflog"
	"github.com/weir-net/weir/policy/ruleset"
)

// These constants limit lines (see Line). A sender gets only as many lines a second as people can read. So the lines
// of a flood take no room from other senders.
const (
	burst     = 50 // how many lines one sender may have at once
	perSecond = 20 // how many lines one sender may have in each further second
	// There are at most maxFlows flows. A flow counts packets of one kind. Once there are half as many flows, only a
	// sender without a flow gets a new flow.
	maxFlows = 16384
	// The first maxSenders pods or links have an account each. All further senders share a fixed number of accounts.
	maxSenders = 8192
	shared     = 256
	// Once there are maxRests lines of left-out packets, all further left-out packets with the same log prefix share a
	// line.
	maxRests    = 1024
	maxPrefixes = 4096
	repeatAfter = time.Second
)

// Line stands for packets that are counted together.
type Line struct {
	Kind  agentapi.DropKind
	Time  time.Time
	Count uint64
	*Prefix
	// Flow has the packets' addresses and ports. A line of kind DropMore has no ports. It has the receiver's address
	// only if an ingress rule dropped the packets. It has the sender's address only if the sender is a pod with an
	// account of its own.
	Flow nflog.Flow
	// Port is the index of the pod's link if Prefix.ByLink is true, otherwise 0.
	Port uint32
	// Packet is the beginning of the first packet.
	Packet []byte
	// Sender is the number of the sender's account. Ring shares its room among the accounts.
	Sender uint64
}

// Sums counts packets of the same kind together until Lines or Rest returns the counts. Only one goroutine may use it.
type Sums struct {
	// IsPod reports whether the address may belong to a pod, on any node.
	IsPod func(netip.Addr) bool

	now      time.Time
	seed     maphash.Seed
	prefixes map[string]*Prefix
	last     string
	lastOf   *Prefix
	flows    map[flowKey]*flow
	due      []*flow // the flows with packets that are in no Line yet
	senders  map[[16]byte]*sender
	others   [shared]*sender
	accounts uint64 // the number of the last account that was made
	rests    map[restKey]*rest
	lost     uint64
	swept    time.Time
}

type flowKey struct {
	*Prefix
	nflog.Flow        // its source port is 0, so packets from all source ports share a flow
	link       uint32 // the index of the sender's link if Prefix.ByLink is true, otherwise 0
}

type flow struct {
	flowKey
	sender  *sender
	count   uint64 // the packets since the last line
	first   time.Time
	port    uint16 // the source port of the first packet
	next    time.Time
	packet  []byte
	waiting bool // true if due contains the flow
}

type sender struct {
	number  uint64
	alone   bool
	tokens  float64
	counted time.Time // when tokens was last computed
	flows   int
	last    *rest
	lastOf  restKey
}

type restKey struct {
	*Prefix
	local     [16]byte // the address of the pod whose policies dropped the packets
	link      uint32
	etherType uint16
	sender    *sender
}

type rest struct {
	Line
}

// NewSums returns Sums without packets. Until the caller sets IsPod, no address counts as a pod's.
func NewSums() *Sums {
	return &Sums{
		IsPod: func(netip.Addr) bool { return false }, seed: maphash.MakeSeed(), prefixes: map[string]*Prefix{},
		flows: map[flowKey]*flow{}, senders: map[[16]byte]*sender{}, rests: map[restKey]*rest{},
	}
}

func (s *Sums) At(now time.Time) { s.now = now }

// Lost counts packets that the reader missed, so that only their number is known.
func (s *Sums) Lost(count uint64) { s.lost += count }

// Add counts the packet in its flow. If the flow is new and there is no room for it, the packet counts as left out.
func (s *Sums) Add(p *nflog.Packet) {
	f, _ := nflog.FlowOf(p.EtherType, p.Payload)
	port := f.SrcPort
	f.SrcPort = 0
	key := flowKey{Prefix: s.prefix(p.Prefix), Flow: f}
	if key.ByLink {
		key.link = cmp.Or(p.Port, p.In)
	}
	if same := s.flows[key]; same != nil {
		if same.count == 0 {
			s.begin(same, p, port)
		}
		same.count++
		return
	}
	from := s.sender(key)
	if !s.mayBegin(from) {
		s.leaveOut(key, from)
		return
	}
	from.tokens--
	from.flows++
	begun := &flow{flowKey: key, sender: from, count: 1, next: s.now}
	s.flows[key] = begun
	s.begin(begun, p, port)
}

func (s *Sums) begin(f *flow, p *nflog.Packet, port uint16) {
	f.first, f.port = s.now, port
	f.packet = append(make([]byte, 0, len(p.Payload)), p.Payload...) // a copy, because a Line keeps it
	if !f.waiting {
		f.waiting = true
		s.due = append(s.due, f)
	}
}

func (s *Sums) prefix(text []byte) *Prefix {
	if string(text) == s.last && s.lastOf != nil { // in a flood, most packets have the same prefix
		return s.lastOf
	}
	p := s.prefixes[string(text)]
	if p == nil {
		if len(s.prefixes) >= maxPrefixes {
			clear(s.prefixes)
		}
		p = prefixOf(string(text))
		s.prefixes[string(text)] = p
	}
	s.last, s.lastOf = string(text), p
	return p
}

// sender returns the account for the sender of the flow's packets. If the flow has a link, the link identifies the
// sender, because the source address may be forged. Otherwise the source address identifies the sender. Senders that
// are no pods, and senders of forged packets, share accounts. So do all further senders if there is no room for more
// accounts.
func (s *Sums) sender(f flowKey) *sender {
	by := f.Src
	if f.link != 0 {
		by = [16]byte{}
		binary.BigEndian.PutUint32(by[12:], f.link) // no pod has this address, so a link never shares a pod's account
	}
	if from := s.senders[by]; from != nil && !f.Forged {
		return s.refill(from)
	}
	if !f.Forged && len(s.senders) < maxSenders && (f.link != 0 || s.IsPod(f.Source())) {
		from := s.account()
		from.alone = f.link == 0
		s.senders[by] = from
		return from
	}
	at := &s.others[maphash.Bytes(s.seed, f.Src[:])%shared]
	if *at == nil {
		*at = s.account()
	}
	return s.refill(*at)
}

func (s *Sums) account() *sender {
	s.accounts++
	return &sender{number: s.accounts, tokens: burst, counted: s.now}
}

func (s *Sums) refill(from *sender) *sender {
	if from.counted != s.now { // time has passed since the last refill
		from.tokens += max(0, s.now.Sub(from.counted).Seconds()) * perSecond
		from.tokens, from.counted = min(burst, from.tokens), s.now
	}
	return from
}

func (s *Sums) mayBegin(from *sender) bool {
	switch {
	case len(s.flows) >= maxFlows || from.tokens < 1 || from.flows >= burst:
		return false
	case len(s.flows) >= maxFlows/2:
		return from.flows == 0
	}
	return true
}

func (s *Sums) leaveOut(k flowKey, from *sender) {
	key := restKey{Prefix: k.Prefix, local: k.Src, link: k.link, etherType: k.EtherType, sender: from}
	switch {
	case k.link != 0:
		key.local = [16]byte{} // the addresses may be forged, so they identify no pod
	case k.Direction == ruleset.Ingress:
		key.local = k.Dst
	}
	if from.last != nil && from.lastOf == key {
		from.last.Count++
		return
	}
	r := s.rests[key]
	if r == nil && len(s.rests) >= maxRests {
		key = restKey{Prefix: k.Prefix}
		r = s.rests[key]
	}
	if r == nil {
		r = &rest{Line{Kind: agentapi.DropMore, Time: s.now, Prefix: k.Prefix, Sender: from.number}}
		if key.sender != nil {
			r.Flow, r.Port = nflog.Flow{EtherType: k.EtherType}, k.link
			if k.Direction == ruleset.Ingress {
				r.Flow.Dst = k.Dst
			}
			if from.alone {
				r.Flow.Src = k.Src
			}
		}
		s.rests[key] = r
	}
	r.Count++
	from.last, from.lastOf = r, key
}

// Lines appends the due lines to list. A new flow's first line is due at once. Each later line of the flow is due at
// least a second after the line before. If waiting is true, the caller must call Lines again, even if no packet comes.
func (s *Sums) Lines(list []Line) (lines []Line, waiting bool) {
	still := s.due[:0]
	for _, f := range s.due {
		if f.next.After(s.now) {
			still = append(still, f)
			continue
		}
		line := Line{
			Kind: agentapi.DropShown, Time: f.first, Count: f.count, Prefix: f.Prefix, Flow: f.Flow, Packet: f.packet,
			Port: f.link, Sender: f.sender.number,
		}
		line.Flow.SrcPort = f.port
		list = append(list, line)
		f.count, f.packet, f.waiting, f.next = 0, nil, false, s.now.Add(repeatAfter)
	}
	clear(s.due[len(still):])
	s.due = still
	if s.now.Sub(s.swept) >= repeatAfter {
		s.swept = s.now
		list = s.sweep(list)
	}
	return list, len(s.flows)+len(s.rests) > 0 || s.lost > 0
}

// Rest returns lines about all packets that are in no line yet.
func (s *Sums) Rest() []Line {
	s.now = s.now.Add(repeatAfter)
	lines, _ := s.Lines(nil)
	return lines
}

// sweep adds the lines about left-out and lost packets. It forgets flows and senders without packets.
func (s *Sums) sweep(list []Line) []Line {
	for key, r := range s.rests {
		list = append(list, r.Line)
		if key.sender != nil {
			key.sender.last = nil
		}
	}
	empty(&s.rests)
	if s.lost > 0 {
		list = append(list, Line{Kind: agentapi.DropLost, Time: s.now, Count: s.lost, Prefix: &Prefix{}})
		s.lost = 0
	}
	for key, f := range s.flows {
		if f.count == 0 && !f.next.After(s.now) {
			f.sender.flows--
			delete(s.flows, key)
		}
	}
	if len(s.flows) == 0 {
		empty(&s.flows)
	}
	for key, from := range s.senders {
		if from.flows == 0 && s.refill(from).tokens >= burst {
			delete(s.senders, key)
		}
	}
	if len(s.senders) == 0 {
		empty(&s.senders)
	}
	return list
}

// empty removes all entries. It makes a new map, because clear would keep the memory of a map that was once large.
func empty[K comparable, V any](m *map[K]V) {
	if len(*m) > 0 {
		*m = map[K]V{}
	}
}
