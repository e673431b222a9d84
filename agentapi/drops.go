package agentapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// DropsPath answers with dropped packets, as a stream of JSON values (Drop).
const DropsPath = "/v1/drops"

type DropKind string

// Each dropped packet that the kernel logs is counted in a Drop of one of these kinds. Packets that have passed, and
// are logged for audited policies (ByAudit), may be missing.
const (
	// DropShown counts packets of one sender to one address and port.
	DropShown DropKind = "drop"
	// DropMore counts packets that aren't shown: their sender, or all senders together, sent to too many destinations.
	DropMore DropKind = "more"
	// DropLost counts packets that the agent missed, because it read from the kernel too slowly.
	DropLost DropKind = "lost"
	// DropMissed counts packets that this client missed, because it read from the agent too slowly.
	DropMissed DropKind = "missed"
)

// Drop is one or more packets that the kernel dropped. With the reason ByAudit, the packets passed, and audited
// policies would drop them. Unknown fields are empty.
type Drop struct {
	Kind DropKind `json:"kind"`
	// Time is when the agent read the first of the packets, usually within 0.2 seconds of the drop.
	Time        time.Time `json:"time"`
	Count       uint64    `json:"count"`
	Node        string    `json:"node,omitempty"`
	Reason      string    `json:"reason,omitempty"`
	Direction   string    `json:"direction,omitempty"`
	Source      DropEnd   `json:"source,omitzero"`
	Destination DropEnd   `json:"destination,omitzero"`
	// Protocol is the name of the protocol above IP, such as tcp or gre. A protocol whose name weir doesn't know has its
	// number here.
	Protocol string `json:"protocol,omitempty"`
	// ICMP is an ICMP packet's type and code, as "type 8 code 0".
	ICMP string `json:"icmp,omitempty"`
	// Chain is the chain whose rule logged the packets. It is empty if the rule's log prefix names no chain.
	Chain string `json:"chain,omitempty"`
	// Policies are the policies that isolate the pod in this direction. With the reason ByAudit, they are the audited
	// policies that would isolate the pod.
	Policies []string `json:"policies,omitempty"`
	Detail   string   `json:"detail,omitempty"`
	// Packet is the beginning of the first packet, from its IP header on. It is empty if the client hasn't asked for
	// packets (DropsQuery.Packets).
	Packet []byte `json:"packet,omitempty"`
}

type DropEnd struct {
	// Pod is namespace/name. If several pods may have the address, commas separate them.
	Pod string `json:"pod,omitempty"`
	// Node is the node's name, if the address is a node's own. For a pod's address, Node is empty.
	Node    string     `json:"node,omitempty"`
	Address netip.Addr `json:"address,omitzero"`
	// Port is a TCP, UDP or SCTP port. A source's port is the port of the first packet only.
	Port uint16 `json:"port,omitempty"`
}

// String returns "shop/db (10.88.0.2:5432)". It leaves out unknown parts.
func (e DropEnd) String() string {
	address := ""
	switch {
	case e.Address.IsValid() && e.Port != 0:
		address = netip.AddrPortFrom(e.Address, e.Port).String()
	case e.Address.IsValid():
		address = e.Address.String()
	}
	name := e.Pod
	if name == "" && e.Node != "" {
		name = "node " + e.Node
	}
	switch {
	case name == "":
		return address
	case address == "":
		return name
	}
	return name + " (" + address + ")"
}

// Local returns the end on the drop's node: the destination for ingress, the source for egress. It returns false if
// the direction is unknown.
func (d *Drop) Local() (DropEnd, bool) {
	switch d.Direction {
	case "ingress":
		return d.Destination, true
	case "egress":
		return d.Source, true
	}
	return DropEnd{}, false
}

// DropsQuery selects drops for GET /v1/drops. The zero value selects all drops that the agent remembers.
type DropsQuery struct {
	// Since selects remembered drops that are at most this old. If Since is 0, the query selects all remembered drops,
	// or none of them if Follow is true.
	Since time.Duration
	// Follow asks for new drops too, until the client closes the connection.
	Follow  bool
	Packets bool
	// Namespace, Pod, Policy, Reason and Port select drops; empty means any. Namespace and Pod match either end. Port
	// is the destination's port. Pod and Policy are NAME or NAMESPACE/NAME.
	Namespace, Pod, Policy, Reason string
	Port                           uint16
	// Audit selects only drops with the reason ByAudit.
	Audit bool
}

func (q DropsQuery) Path() string {
	v := url.Values{}
	put := func(key, value string, unset bool) {
		if !unset {
			v.Set(key, value)
		}
	}
	put("since", q.Since.String(), q.Since == 0)
	put("follow", "true", !q.Follow)
	put("packets", "true", !q.Packets)
	put("audit", "true", !q.Audit)
	put("namespace", q.Namespace, q.Namespace == "")
	put("pod", q.Pod, q.Pod == "")
	put("policy", q.Policy, q.Policy == "")
	put("reason", q.Reason, q.Reason == "")
	put("port", strconv.Itoa(int(q.Port)), q.Port == 0)
	if len(v) == 0 {
		return DropsPath
	}
	return DropsPath + "?" + v.Encode()
}

// ParseDropsQuery parses the query of a path that Path has returned. The error names the key with the wrong value.
func ParseDropsQuery(v url.Values) (q DropsQuery, err error) {
	q.Namespace, q.Pod, q.Policy, q.Reason = v.Get("namespace"), v.Get("pod"), v.Get("policy"), v.Get("reason")
	for key, flag := range map[string]*bool{
		"follow": &q.Follow, "packets": &q.Packets, "audit": &q.Audit,
	} {
		if s := v.Get(key); s != "" {
			if *flag, err = strconv.ParseBool(s); err != nil {
				return q, fmt.Errorf("%s: %q: must be true or false", key, s)
			}
		}
	}
	if s := v.Get("since"); s != "" {
		if q.Since, err = time.ParseDuration(s); err != nil || q.Since < 0 {
			return q, fmt.Errorf("since: %q: must be a duration such as 5m", s)
		}
	}
	if s := v.Get("port"); s != "" {
		port, err := strconv.ParseUint(s, 10, 16)
		if err != nil || port == 0 {
			return q, fmt.Errorf("port: %q: must be a number from 1 to 65535", s)
		}
		q.Port = uint16(port)
	}
	return q, nil
}

// Matches reports whether the query selects the drop. Drops of the kinds DropLost and DropMissed always match. Drops of
// the kind DropMore match every port. Matches ignores Since.
func (q DropsQuery) Matches(d *Drop) bool {
	if d.Kind == DropLost || d.Kind == DropMissed {
		return true
	}
	if q.Audit && d.Reason != ByAudit {
		return false
	}
	if q.Namespace != "" && !inNamespace(d.Source.Pod, q.Namespace) && !inNamespace(d.Destination.Pod, q.Namespace) {
		return false
	}
	if q.Pod != "" && !named(d.Source.Pod, q.Pod) && !named(d.Destination.Pod, q.Pod) {
		return false
	}
	if q.Policy != "" && !slices.ContainsFunc(d.Policies, func(p string) bool { return named(p, q.Policy) }) {
		return false
	}
	if q.Reason != "" && d.Reason != q.Reason {
		return false
	}
	return q.Port == 0 || d.Destination.Port == q.Port || d.Kind == DropMore
}

func inNamespace(pods, namespace string) bool {
	for p := range strings.SplitSeq(pods, ",") {
		if n, _, ok := strings.Cut(p, "/"); ok && n == namespace {
			return true
		}
	}
	return false
}

// named reports whether one of the objects has the name. Commas separate the objects. The name may be given without
// its namespace.
func named(objects, name string) bool {
	for o := range strings.SplitSeq(objects, ",") {
		if _, short, ok := strings.Cut(o, "/"); o == name || ok && short == name {
			return true
		}
	}
	return false
}

// Drops asks the agent for drops, and passes every drop to the function each, until that function returns false. With
// q.Follow, an idle agent sends a sign of life every 15 seconds: Drops then passes nil to each. The error wraps
// ErrNoAgent if no agent answers. The end of ctx is an error.
//
// Equivalent to, with q.Follow: curl -N --unix-socket /run/weir/agent.sock 'http://agent/v1/drops?follow=true'
func Drops(ctx context.Context, q DropsQuery, each func(*Drop) bool) error {
	question, err := Ask(ctx, "GET", q.Path(), nil)
	if err != nil {
		return err
	}
	defer func() { _ = question.conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = question.conn.SetDeadline(time.Unix(1, 0)) })()
	in := bufio.NewReader(question.conn)
	status, err := readHead(in)
	if err != nil {
		return question.failed(err)
	}
	if status != 200 {
		why, _ := io.ReadAll(io.LimitReader(in, 4<<10))
		return fmt.Errorf("ask the agent for drops: %s", refusal(status, why))
	}
	return readDrops(in, question.failed, each)
}

func refusal(status int, answer []byte) string {
	var v struct{ Error string }
	if status == 404 {
		return "it is older than weirctl, and has no drops"
	}
	if json.Unmarshal(answer, &v) == nil && v.Error != "" {
		return v.Error
	}
	return fmt.Sprintf("it answers %d", status)
}

func readHead(in *bufio.Reader) (status int, err error) {
	for first := true; ; first = false {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if first {
			if _, err := fmt.Sscanf(string(line), "HTTP/%s %d", new(string), &status); err != nil {
				return 0, fmt.Errorf("the agent's answer is no HTTP: %.100q", line)
			}
		}
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			return status, nil
		}
	}
}

func readDrops(in io.Reader, failed func(error) error, each func(*Drop) bool) error {
	for values := json.NewDecoder(in); ; {
		d := &Drop{}
		switch err := values.Decode(d); {
		case err == io.EOF:
			return nil
		case err != nil:
			return failed(err)
		case d.Kind == "" && each(nil):
		case d.Kind == "" || !each(d):
			return nil
		}
	}
}
