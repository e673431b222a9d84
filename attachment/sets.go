package attachment

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/netfilter/nftnl"
)

// podSets are the sets of the agent's backend. While the backend is unknown, they are the sets of both
// backends.
type podSets struct{}

// used returns the implementations for the backends that may be in use.
func (podSets) used() ([]PodSets, error) {
	backend, err := endpoint.ReadBackend()
	if err != nil {
		return nil, err
	}
	switch backend {
	case conf.Iptables:
		return []PodSets{ipset.PodSets{}}, nil
	case conf.Nftables:
		return []PodSets{nftnl.PodSets{}}, nil
	}
	return []PodSets{ipset.PodSets{}, nftnl.PodSets{}}, nil
}

func (s podSets) each(do func(PodSets) error) error {
	used, err := s.used()
	if err != nil {
		return err
	}
	var errs []error
	lacking := 0
	for _, one := range used {
		err := do(one)
		if lacks(err) {
			lacking++
		}
		errs = append(errs, err)
	}
	if lacking < len(used) {
		for i, err := range errs {
			if lacks(err) {
				errs[i] = nil
			}
		}
	}
	return errors.Join(errs...)
}

func lacks(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) ||
		errors.Is(err, unix.EAFNOSUPPORT) ||
		errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, nl.IPSetError(nl.IPSET_ERR_FIND_TYPE))
}

func (s podSets) Name(addr netip.Addr) (name string) {
	_ = s.each(func(one PodSets) error {
		if name != "" {
			name += " and "
		}
		name += one.Name(addr)
		return nil
	})
	return name
}

// triesOfADeny is how often Deny tries. A try fails if the agent destroys a set meanwhile. The agent does so when it
// changes the backend.
const triesOfADeny = 5

func (s podSets) Deny(pod string, addrs ...netip.Addr) (err error) {
	for range triesOfADeny {
		err = s.each(func(one PodSets) error { return one.Deny(pod, addrs...) })
		if !errors.Is(err, ipset.ErrNotExist) && !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	return err
}

func (s podSets) Remove(addrs ...netip.Addr) error {
	return s.each(func(one PodSets) error {
		if err := one.Remove(addrs...); !errors.Is(err, ipset.ErrNotExist) {
			return err
		}
		return nil
	})
}

func (s podSets) Purge(addrs ...netip.Addr) error {
	return s.each(func(one PodSets) error { return one.Purge(addrs...) })
}

func (s podSets) PurgeEarly(addrs ...netip.Addr) (later func()) {
	used, _ := s.used()
	var all []func()
	for _, one := range used {
		all = append(all, one.PurgeEarly(addrs...))
	}
	return func() {
		for _, later := range all {
			later()
		}
	}
}

func (s podSets) Contains(addr netip.Addr) (bool, error) {
	return s.any(func(one PodSets) (bool, error) { return one.Contains(addr) })
}

func (s podSets) InUse(addr netip.Addr) (bool, error) {
	return s.any(func(one PodSets) (bool, error) { return one.InUse(addr) })
}

// any reports whether the answer to the question is true for the sets of at least one backend. For missing sets, the
// answer is false.
func (s podSets) any(question func(PodSets) (bool, error)) (any bool, err error) {
	err = s.each(func(one PodSets) error {
		yes, err := question(one)
		if any = any || yes; errors.Is(err, ipset.ErrNotExist) {
			return nil
		}
		return err
	})
	return any, err
}

func (s podSets) Check(addrs ...netip.Addr) error {
	used, err := s.used()
	if err != nil {
		return err
	}
	var errs []error
	for _, one := range used {
		err := one.Check(addrs...)
		if err == nil {
			return nil
		}
		if inUse, _ := one.InUse(addrs[0]); inUse && len(errs) > 0 {
			errs[0] = err
		}
		errs = append(errs, err)
	}
	// errs[0] is the error of the backend whose rules use the set of all pods. If no rules use the set, errs[0] is the
	// first backend's error.
	return errs[0]
}

func (s podSets) Addresses() (all []netip.Addr, err error) {
	err = s.each(func(one PodSets) error {
		addrs, err := one.Addresses()
		all = append(all, addrs...)
		return err
	})
	return all, err
}
