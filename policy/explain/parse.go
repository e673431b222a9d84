package explain

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// InputError says what is wrong with a query. The message is one line.
type InputError struct {
	message string
	missing string // the end that doesn't exist, as the query names it; empty for other errors
}

func (e *InputError) Error() string { return e.message }

// Misses reports whether the error says that this end of the query doesn't exist.
func (e *InputError) Misses(end Ref) bool { return e.missing == end.String() }

// NewInputError makes an InputError from the message of an InputError that an agent has sent.
func NewInputError(message string) error { return inputError("%s", message) }

func inputError(format string, args ...any) *InputError {
	return &InputError{message: strings.ReplaceAll(excerpt.Of(fmt.Sprintf(format, args...)), "\n", " ")}
}

type EndKind string

const (
	EndPod     EndKind = "pod"
	EndService EndKind = "service"
	EndNode    EndKind = "node"
	EndAddress EndKind = "address"
	EndWorld   EndKind = "world"
	// EndNamed is a pod or a Service, until resolve finds out which of them has the name.
	EndNamed EndKind = "pod or service"
)

// Ref is an end of a connection as a person names it.
type Ref struct {
	Kind      EndKind    `json:"kind"`
	Namespace string     `json:"namespace,omitempty"`
	Name      string     `json:"name,omitempty"`
	Address   netip.Addr `json:"address,omitzero"`
}

// String returns the end in the form in which a person writes it, such as "shop/web", "svc/shop/web" or "node/n1".
func (r Ref) String() string {
	switch r.Kind {
	case EndWorld:
		return "world"
	case EndAddress:
		return r.Address.String()
	case EndNode:
		return "node/" + r.Name
	case EndService:
		return "svc/" + r.Namespace + "/" + r.Name
	}
	if r.Namespace == "" {
		return r.Name
	}
	return r.Namespace + "/" + r.Name
}

type Port struct {
	// Number is 0 if the query gives the port's name, or no port.
	Number uint16           `json:"number,omitempty"`
	Name   string           `json:"name,omitempty"`
	Proto  ruleset.Protocol `json:"protocol,omitempty"`
}

type Query struct {
	From Ref  `json:"from"`
	To   Ref  `json:"to"`
	Port Port `json:"port"`
}

// Question is what weirctl asks an agent: the arguments of Parse, and the Services that weirctl has read, because the
// agent may not know them.
type Question struct {
	From      string           `json:"from"`
	To        string           `json:"to"`
	Namespace string           `json:"namespace,omitempty"`
	Services  []policy.Service `json:"services,omitempty"`
}

var names = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)

var portNames = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// Parse parses the arguments FROM and TO[:PORT[/PROTO]] of a command. Names without a namespace get the given
// namespace, which may be empty. An error is always an *InputError.
func Parse(from, to, namespace string) (q Query, err error) {
	if q.From, err = parseEnd(from, namespace); err != nil {
		return Query{}, err
	}
	end, port, has, err := cutPort(to)
	if err != nil {
		return Query{}, err
	}
	if q.To, err = parseEnd(end, namespace); err != nil {
		return Query{}, err
	}
	if has {
		q.Port, err = parsePort(port)
	}
	return q, err
}

func cutPort(s string) (end, port string, has bool, err error) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		end, rest, closed := strings.Cut(inner, "]")
		port, has = strings.CutPrefix(rest, ":")
		if !closed || (rest != "" && !has) {
			return "", "", false, inputError("%q: write an IPv6 address with a port as [ADDRESS]:PORT", s)
		}
		return end, port, has, nil
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return s, "", false, nil
	}
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		if a, err := netip.ParseAddr(s[:i]); err == nil && a.Is6() {
			return "", "", false, inputError("%q: write an IPv6 address with a port as [ADDRESS]:PORT", s)
		}
	}
	end, port, has = strings.Cut(s, ":")
	return end, port, has, nil
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

const endForms = "an end is NAMESPACE/POD, svc/NAMESPACE/SERVICE, an address, node/NAME or world"

func parseEnd(s, namespace string) (Ref, error) {
	if s == "world" {
		return Ref{Kind: EndWorld}, nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Unmap().IsLoopback() {
			return Ref{}, inputError("%q is a loopback address: packets to it never leave the pod or the node", s)
		}
		if a = a.Unmap(); a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a == broadcast {
			return Ref{}, inputError("%q is not the address of one host", s)
		}
		return Ref{Kind: EndAddress, Address: a}, nil
	}
	parts := strings.Split(s, "/")
	kind := EndNamed
	if len(parts) > 1 {
		switch parts[0] {
		case "node", "nodes", "no":
			kind = EndNode
		case "svc", "service", "services":
			kind = EndService
		case "pod", "pods", "po":
			kind = EndPod
		}
	}
	switch {
	case kind == EndNode && len(parts) == 2:
		parts = []string{"", parts[1]}
	case kind == EndNode:
		return Ref{}, inputError("%q: write a node as node/NAME", s)
	case kind != EndNamed && len(parts) == 3:
		parts = parts[1:]
	case kind != EndNamed && len(parts) == 2 && namespace != "":
		parts = []string{namespace, parts[1]}
	case kind != EndNamed && len(parts) == 2: // a namespace may have the name of a kind, such as "svc"
		kind = EndNamed
	case kind == EndNamed && len(parts) == 1:
		parts = []string{namespace, parts[0]}
	}
	if len(parts) != 2 {
		return Ref{}, inputError("%q: %s", s, endForms)
	}
	if !names.MatchString(parts[1]) || (parts[0] != "" && !names.MatchString(parts[0])) ||
		(parts[0] == "" && strings.Contains(s, "/") && kind != EndNode) {
		return Ref{}, inputError("%q is no name: %s", s, endForms)
	}
	if _, err := netip.ParsePrefix(parts[0] + "/" + parts[1]); err == nil {
		return Ref{}, inputError("%q is a network: name one address of it", s)
	}
	return Ref{Kind: kind, Namespace: parts[0], Name: parts[1]}, nil
}

var protocolNames = map[string]ruleset.Protocol{
	"tcp": ruleset.TCP, "udp": ruleset.UDP, "sctp": ruleset.SCTP, "icmp": ruleset.ICMP,
}

func parsePort(s string) (Port, error) {
	number, proto, has := strings.Cut(s, "/")
	p := Port{Proto: ruleset.TCP}
	if has {
		known, ok := protocolNames[strings.ToLower(proto)]
		if !ok {
			return Port{}, inputError("protocol %q: must be TCP, UDP, SCTP or ICMP", proto)
		}
		p.Proto = known
	}
	switch n, err := strconv.ParseInt(number, 10, 64); {
	case number == "" && p.Proto == ruleset.ICMP:
		return p, nil
	case number == "":
		return Port{}, inputError("%q: a port must follow the colon", ":"+s)
	case p.Proto == ruleset.ICMP:
		return Port{}, inputError("%q: ICMP has no ports: write :/icmp", ":"+s)
	case errors.Is(err, strconv.ErrRange), err == nil && (n < 1 || n > 65535):
		return Port{}, inputError("port %s is out of range: 1 to 65535", number)
	case err == nil && number[0] != '+':
		p.Number = uint16(n)
	case len(number) > 15 || !portNames.MatchString(number):
		return Port{}, inputError("%q is no port: write a number from 1 to 65535, or the name of a port", number)
	default:
		p.Name = number
	}
	return p, nil
}
