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

// DropsPath is the path at which the agent reports dropped packets, as JSON values one behind the other.
const DropsPath = "/v1/drops"

// DropKind says what a Drop stands for.
type DropKind string

// The counts of all kinds together are the packets that the kernel has logged. Only packets of audited policies may
// be missing: those that can't be judged (AuditReport.Unjudged), and those that the policies would not drop.
const (
	// DropShown: packets of one sender to one address and port.
	DropShown DropKind = "drop"
	// DropMore: packets of one sender to too many addresses or ports, which the agent didn't keep apart.
	DropMore DropKind = "more"
	// DropLost: packets that the kernel couldn't hand to the agent, because the agent read too slowly.
	DropLost DropKind = "lost"
	// DropMissed: packets that the agent couldn't hand to this client, because the client read too slowly.
	DropMissed DropKind = "missed"
)

// Drop is one or more packets that the kernel dropped, or that audited policies would drop (ByAudit). A field is
// empty if it is unknown or has no meaning.
type Drop struct {
	Kind DropKind `json:"kind"`
	// Time is when the agent read the first of the packets, at most 0.2 seconds after the kernel dropped it.
	Time   time.Time `json:"time"`
	Count  uint64    `json:"count"`
	Node   string    `json:"node,omitempty"`
	Reason string    `json:"reason,omitempty"`
	// Direction is ingress or egress.
	Direction   string  `json:"direction,omitempty"`
	Source      DropEnd `json:"source,omitzero"`
	Destination DropEnd `json:"destination,omitzero"`
	// Protocol is the protocol above IP, such as tcp, or its number.
	Protocol string `json:"protocol,omitempty"`
	// ICMP has the type and code of an ICMP packet, as "type 8 code 0".
	ICMP string `json:"icmp,omitempty"`
	// Chain is the chain whose rule logged the packets. It is empty for rules of the guard and the gate.
	Chain string `json:"chain,omitempty"`
	// Policies are all policies that isolate the pod in the direction. With ByAudit they would isolate it.
	Policies []string `json:"policies,omitempty"`
	// Detail has what else the first of the packets tells, in words.
	Detail string `json:"detail,omitempty"`
	// Packet has the first bytes of the first packet, from the IP header on. It is empty unless the client asked for
	// it.
	Packet []byte `json:"packet,omitempty"`
}

// DropEnd is the sender or the receiver of a packet.
type DropEnd struct {
	// Pod is the pod as namespace/name, or several with commas between them if they share the address.
	Pod string `json:"pod,omitempty"`
	// Node is the name of the Node that has the address as its own.
	Node    string     `json:"node,omitempty"`
	Address netip.Addr `json:"address,omitzero"`
	// Port is a TCP, UDP or SCTP port. As the source's port it is that of the first packet only.
	Port uint16 `json:"port,omitempty"`
}

// String returns "shop/db (10.88.0.2:5432)", as far as the parts are known.
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

// Local returns the end whose policies dropped the packets, and reports whether it is known.
func (d *Drop) Local() (DropEnd, bool) {
	switch d.Direction {
	case "ingress":
		return d.Destination, true
	case "egress":
		return d.Source, true
	}
	return DropEnd{}, false
}

// DropsQuery is the question of GET /v1/drops. The zero value asks for all drops that the agent remembers.
type DropsQuery struct {
	// Since leaves out drops that are older. It is ignored if it is 0.
	Since time.Duration
	// Follow asks for new drops too, until the client closes the connection.
	Follow bool
	// Packets asks for Drop.Packet.
	Packets bool
	// Namespace, Pod, Policy, Reason and Port leave out other drops; empty for any. Namespace and Pod are those of
	// either end. Policy is one of the isolating policies. Pod and Policy are a name or namespace/name. Port is the
	// destination's.
	Namespace, Pod, Policy, Reason string
	Port                           uint16
	// Audit leaves out drops of all reasons but ByAudit.
	Audit bool
}

// Path returns the path and query of the question's URL. ParseDropsQuery reads such a query.
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

// ParseDropsQuery reads the question from a URL. The error names the key whose value has the wrong form.
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

// Matches reports whether the question asks for the drop. Packets of which nothing is known always match (DropLost,
// DropMissed). For DropMore the port doesn't matter. Matches doesn't look at Since.
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

// inNamespace reports whether one of the pods is in the namespace. Commas separate the pods.
func inNamespace(pods, namespace string) bool {
	for p := range strings.SplitSeq(pods, ",") {
		if n, _, ok := strings.Cut(p, "/"); ok && n == namespace {
			return true
		}
	}
	return false
}

// named reports whether one of the objects has the name. Commas separate the objects. The name may lack the
// namespace.
func named(objects, name string) bool {
	for o := range strings.SplitSeq(objects, ",") {
		if _, short, ok := strings.Cut(o, "/"); o == name || ok && short == name {
			return true
		}
	}
	return false
}

// Drops asks the agent for drops, and passes them one by one to the function each, until each returns false. With
// q.Follow it waits for new drops until the agent ends, or until ctx ends, which is an error. The error wraps
// ErrNoAgent if there is no agent.
//
// Equivalent to: curl --no-buffer --unix-socket /run/weir/agent.sock http://agent/v1/drops?follow=true
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

// refusal returns the agent's reason, or what is known without one.
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

// readHead reads the lines before the body of an answer, and returns the HTTP status.
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

// readDrops calls each with the drops of the stream, until each returns false or the stream ends. failed wraps an
// error of the stream.
func readDrops(in io.Reader, failed func(error) error, each func(*Drop) bool) error {
	for values := json.NewDecoder(in); ; {
		d := &Drop{}
		switch err := values.Decode(d); {
		case err == io.EOF:
			return nil
		case err != nil:
			return failed(err)
		case d.Kind == "": // a sign of life
		case !each(d):
			return nil
		}
	}
}
