package conf

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"go4.org/netipx"
)

type Range struct {
	Subnet netip.Prefix `json:"subnet"`
	// RangeStart and RangeEnd are the first and the last address that the range assigns. The default is the
	// first and the last address that a host can have.
	RangeStart netip.Addr `json:"rangeStart,omitzero"`
	RangeEnd   netip.Addr `json:"rangeEnd,omitzero"`
	// Gateway is the bridge's own address in the subnet, which is never assigned. The default is the first
	// address that a host can have.
	Gateway netip.Addr `json:"gateway,omitzero"`
	// Exclude has networks whose addresses are never assigned, not even on request.
	Exclude []netip.Prefix `json:"exclude,omitempty"`
}

var knownRangeKeys = []string{"subnet", "rangeStart", "rangeEnd", "gateway", "exclude"}

func parseRanges(key string, list []json.RawMessage) ([]Range, error) {
	ranges := make([]Range, 0, len(list))
	for i, item := range list {
		path := fmt.Sprintf("%s[%d]", key, i)
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(item, &fields); err != nil {
			return nil, invalid(path, string(item), "must be an object with a subnet")
		}
		if err := checkKeys(path+".", fields, knownRangeKeys); err != nil {
			return nil, err
		}
		var r Range
		for _, f := range []struct {
			key, kind string
			into      any
		}{
			{"subnet", "CIDR", &r.Subnet},
			{"gateway", "IP address", &r.Gateway},
			{"rangeStart", "IP address", &r.RangeStart},
			{"rangeEnd", "IP address", &r.RangeEnd},
		} {
			if v, ok := fields[f.key]; ok {
				if err := json.Unmarshal(v, f.into); err != nil {
					return nil, invalid(path+"."+f.key, string(v), "is no "+f.kind)
				}
			}
		}
		if err := r.complete(path); err != nil {
			return nil, err
		}
		if err := r.parseExclude(path+".exclude", fields["exclude"]); err != nil {
			return nil, err
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}

func (r *Range) complete(path string) error {
	if !r.Subnet.IsValid() {
		return missing(path+".subnet", "each range needs a subnet, for instance 10.88.0.0/24")
	}
	if r.Subnet != r.Subnet.Masked() {
		return invalid(path+".subnet", r.Subnet.String(), "has host bits set; did you mean "+r.Subnet.Masked().String()+"?")
	}
	if r.Subnet.Addr().Is4In6() {
		return invalid(path+".subnet", r.Subnet.String(),
			"is IPv4 in IPv6; did you mean "+r.Subnet.Addr().Unmap().String()+"?")
	}
	a := r.Subnet.Addr()
	if a.Is6() && (a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsLoopback() || a.IsUnspecified()) {
		return invalid(path+".subnet", r.Subnet.String(),
			"can't be routed: pods need unique local (fd00::/8) or global addresses")
	}
	if r.Subnet.Bits() > r.Subnet.Addr().BitLen()-2 {
		return invalid(path+".subnet", r.Subnet.String(), "is too small: it must have addresses for a gateway and a pod")
	}
	first, last := hostRange(r.Subnet)
	if !r.Gateway.IsValid() {
		r.Gateway = first
	}
	if !r.RangeStart.IsValid() {
		r.RangeStart = first
	}
	if !r.RangeEnd.IsValid() {
		r.RangeEnd = last
	}
	for _, a := range []struct {
		key  string
		addr netip.Addr
	}{{"gateway", r.Gateway}, {"rangeStart", r.RangeStart}, {"rangeEnd", r.RangeEnd}} {
		if !r.Subnet.Contains(a.addr) || a.addr.Less(first) || last.Less(a.addr) { // an address with a zone is in no subnet
			return invalid(path+"."+a.key, a.addr.String(),
				fmt.Sprintf("is outside of subnet %s (%s to %s)", r.Subnet, first, last))
		}
	}
	if r.RangeEnd.Less(r.RangeStart) {
		return invalid(path+".rangeEnd", r.RangeEnd.String(), "is before rangeStart "+r.RangeStart.String())
	}
	if r.RangeEnd == r.Gateway && r.Gateway == r.RangeStart {
		return invalid(path+".rangeEnd", r.RangeEnd.String(), "leaves no address but the gateway's")
	}
	return nil
}

func (r *Range) parseExclude(path string, data json.RawMessage) error {
	var list []string
	if data == nil {
		return nil
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return invalid(path, string(data), "must be a list of CIDRs")
	}
	for i, s := range list {
		p, err := netip.ParsePrefix(s)
		if a, single := netip.ParseAddr(s); single == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		at := fmt.Sprintf("%s[%d]", path, i)
		switch {
		case err != nil:
			return invalid(at, fmt.Sprintf("%q", s), "is no CIDR")
		case p != p.Masked():
			return invalid(at, s, "has host bits set; did you mean "+p.Masked().String()+"?")
		case !p.Overlaps(r.Subnet):
			return invalid(at, s, "is outside of subnet "+r.Subnet.String())
		}
		r.Exclude = append(r.Exclude, p)
	}
	if len(r.Runs()) == 0 {
		return invalid(path, string(data), "leaves no address")
	}
	return nil
}

// Runs returns the addresses that the range assigns, as runs in ascending order. The gateway and the excluded
// addresses are left out.
func (r Range) Runs() []netipx.IPRange {
	var b netipx.IPSetBuilder
	b.AddRange(netipx.IPRangeFrom(r.RangeStart, r.RangeEnd))
	b.Remove(r.Gateway)
	for _, p := range r.Exclude {
		b.RemovePrefix(p)
	}
	set, err := b.IPSet()
	if err != nil { // impossible for a Range that parseRanges has returned
		return nil
	}
	return set.Ranges()
}

func (r Range) CanAssign(a netip.Addr) bool {
	return !a.Less(r.RangeStart) && !r.RangeEnd.Less(a) && a != r.Gateway &&
		!slices.ContainsFunc(r.Exclude, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (r Range) String() string {
	s := fmt.Sprintf("%s (%s to %s", r.Subnet, r.RangeStart, r.RangeEnd)
	if len(r.Exclude) > 0 {
		s += fmt.Sprintf(" without %v", r.Exclude)
	}
	return s + ")"
}

func checkDisjoint(ranges []Range) error {
	for i, r := range ranges {
		for j, other := range ranges[:i] {
			same := r.Subnet == other.Subnet && r.Gateway == other.Gateway
			if r.Subnet.Overlaps(other.Subnet) && !same {
				return invalid(fmt.Sprintf("ranges[%d].subnet", i), r.Subnet.String(),
					fmt.Sprintf("overlaps ranges[%d] (%s, gateway %s)", j, other.Subnet, other.Gateway))
			}
			if same && !r.RangeEnd.Less(other.RangeStart) && !other.RangeEnd.Less(r.RangeStart) {
				return invalid(fmt.Sprintf("ranges[%d].rangeStart", i), r.RangeStart.String(),
					fmt.Sprintf("overlaps ranges[%d] (%s to %s)", j, other.RangeStart, other.RangeEnd))
			}
		}
	}
	return nil
}

func hostRange(subnet netip.Prefix) (first, last netip.Addr) {
	first, last = subnet.Addr().Next(), lastAddr(subnet)
	if FamilyOf(first) == IPv4 {
		last = last.Prev()
	}
	return first, last
}

func lastAddr(p netip.Prefix) netip.Addr { return netipx.RangeOfPrefix(p).To() }
