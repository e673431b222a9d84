package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/netfilter/ipset"
)

// check verifies that everything ADD made is there and right, and names what isn't. Which class the pod is in is the agent's
// to say; that it is in one for each direction can be told from the sets.
func check(args *call) error {
	c, err := conf.Parse(args.StdinData)
	if err != nil {
		return err
	}
	if c.PrevResult == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing", "CHECK goes by the result of the last ADD")
	}
	id := endpoint.ID(args.ContainerID, args.IfName)
	if err := endpoint.CheckID(id); err != nil {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_CONTAINERID, CNI_IFNAME: %v", err), "")
	}
	e, err := endpoint.Load(id)
	if errors.Is(err, fs.ErrNotExist) {
		return types.NewError(types.ErrUnknownContainer, fmt.Sprintf("there is no endpoint record %s", id), "")
	}
	if err != nil {
		return ioError("check", err)
	}
	fd, err := openNetns(args.Netns)
	if err != nil {
		return err
	}
	defer func() { _ = fd.Close() }()
	if e.Chained {
		if err := errors.Join(checkChained(e, c), checkSets(e), checkHolder(e)); err != nil {
			return ioError("check", err)
		}
		return nil
	}
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return ioError("open netlink", err)
	}
	defer links.Close()
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return ioError("check", fmt.Errorf("endpoint record %s: %w", id, err))
	}
	p := bridge.Port{HostIf: e.HostIf, IfName: e.IfName, Netns: fd, MAC: mac, Addresses: e.Addresses, Routes: c.Routes}
	if err := errors.Join(
		bridge.Check(links, p, c.MTU), checkGuard(p), checkSets(e), checkHolder(e), checkPrevResult(links, fd, args.Netns, c.PrevResult),
	); err != nil {
		return ioError("check", err)
	}
	return nil
}

func checkGuard(p bridge.Port) error {
	ok, err := bridge.SenderAllowed(p.Sender())
	if err == nil && !ok {
		return fmt.Errorf("the spoof guard does not let %s send as %s", p.HostIf, p.MAC)
	}
	return err
}

// checkHolder: an address that the pod doesn't hold could be given to another.
func checkHolder(e *endpoint.Endpoint) error {
	var errs []error
	for _, a := range e.Addresses {
		holder, err := ipam.AssignedTo(a.Addr)
		if err == nil && holder != e.ID() {
			err = fmt.Errorf("%s is held by %q, not by %s", a.Addr, holder, e.ID())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func checkSets(e *endpoint.Endpoint) error {
	if e.Enforcement == conf.Off {
		return nil
	}
	sets, err := ipset.New()
	if err != nil {
		return err
	}
	defer sets.Close()
	headers, err := sets.Headers()
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range e.Addresses {
		set := conf.FamilyOf(a.Addr).Set(conf.PodsSet)
		if in, err := sets.Has(set, a.Addr); err != nil || !in {
			errs = append(errs, errors.Join(fmt.Errorf("%s is not in ipset %s", a.Addr, set), err))
		}
		for _, classes := range []string{conf.IngressClasses, conf.EgressClasses} {
			if in, err := inClass(sets, headers, classes, a.Addr); err != nil || !in {
				errs = append(errs, errors.Join(fmt.Errorf("%s is in no class (ipset %s…): nothing passes until weir-agent has judged the pod", a.Addr, classes), err))
			}
		}
	}
	return errors.Join(errs...)
}

func inClass(sets *ipset.Handle, headers []ipset.Header, prefix string, addr netip.Addr) (bool, error) {
	for _, h := range headers {
		if h.Family != conf.FamilyOf(addr) || !strings.HasPrefix(h.Name, prefix) {
			continue
		}
		if in, err := sets.Has(h.Name, addr); in || err != nil && !errors.Is(err, ipset.ErrNotExist) { // gone since it was listed
			return in, err
		}
	}
	return false, nil
}

// checkPrevResult verifies that what the result of ADD lists is there: what other plugins made after weir, theirs to check in
// detail, too.
func checkPrevResult(links netlinksafe.Handle, fd netns.NsHandle, path string, prev types.Result) error {
	r, err := current.NewResultFromResult(prev)
	if err != nil {
		return fmt.Errorf("prevResult can't be read: %w", err)
	}
	byPlace := map[bool][]bridge.Interface{} // whether in the pod
	for n, i := range r.Interfaces {
		if i.Sandbox != "" && i.Sandbox != path {
			continue
		}
		want := bridge.Interface{Name: i.Name, MAC: i.Mac, MTU: i.Mtu}
		for _, ip := range r.IPs {
			if ip.Interface != nil && *ip.Interface == n {
				want.Addresses = append(want.Addresses, &ip.Address)
			}
		}
		byPlace[i.Sandbox != ""] = append(byPlace[i.Sandbox != ""], want)
	}
	pod, err := netlinksafe.NewHandleAt(fd, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the pod's namespace: %w", err)
	}
	defer pod.Close()
	return errors.Join(bridge.CheckInterfaces(links, "on the node", byPlace[false]), bridge.CheckInterfaces(pod, "in the pod", byPlace[true]))
}
