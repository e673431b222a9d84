package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/attachment"
	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/netfilter/ipset"
)

// enrolTimeout bounds the wait for the agent, which itself waits for the pod to become known. kubelet gives a sandbox
// minutes.
const enrolTimeout = 30 * time.Second

// attaching is an ADD on its way.
type attaching struct {
	conf     *conf.NetConf
	endpoint endpoint.Endpoint
	asked    []netip.Addr     // addresses that the pod shall have
	mac      net.HardwareAddr // and the MAC; nil: one that is derived from its address
	netns    netns.NsHandle
	bridge   *bridge.Bridge
	routes   []conf.Route // that the pod has got
	judged   bool         // its policies, if any, are enforced on it
	making   io.Closer    // says that this ADD is on its way, to whoever looks for what is left of others
}

// add makes the pod's link: its addresses are taken and written down first, its link comes up last, and in between policy
// is in place. Whatever fails, everything before it is taken back.
func add(args *call) (err error) {
	a, err := prepare(args)
	if err != nil {
		return err
	}
	defer func() { _ = a.netns.Close() }()
	defer func() {
		if err != nil {
			err = a.rollBack(err)
		}
	}()
	steps, result := []func() error{a.reserve, a.guard, a.enrol, a.open}, a.result
	if a.endpoint.Chained {
		steps, result = []func() error{a.take, a.close, a.forget, a.enrol}, a.prevResult
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return types.PrintResult(result(), a.conf.CNIVersion)
}

// prepare checks all that can be checked before anything is touched.
func prepare(args *call) (*attaching, error) {
	c, err := conf.Parse(args.StdinData)
	if err != nil {
		return nil, err
	}
	chained, err := c.ForAdd()
	if err != nil {
		return nil, err
	}
	pod, err := conf.ParseArgs(args.Args)
	if err == nil {
		pod, err = c.Identify(pod)
	}
	if err != nil {
		return nil, err
	}
	id := endpoint.ID(args.ContainerID, args.IfName)
	if err := endpoint.CheckID(id); err != nil {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_CONTAINERID, CNI_IFNAME: %v", err), "")
	}
	if endpoint.Exists(id) {
		return nil, types.NewError(types.ErrInvalidEnvironmentVariables,
			fmt.Sprintf("CNI_CONTAINERID, CNI_IFNAME: %s is attached already; it must be deleted first", id), "")
	}
	fd, err := openNetns(args.Netns)
	if err != nil {
		return nil, err
	}
	a := &attaching{
		conf: c, netns: fd,
		endpoint: endpoint.Endpoint{
			ContainerID: args.ContainerID, IfName: args.IfName, Network: c.Name, Netns: args.Netns,
			Pod:     endpoint.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
			Chained: chained, Enforcement: c.Enforcement, Created: time.Now().UTC(),
		},
	}
	if chained {
		err = a.findChained()
	} else {
		a.endpoint.HostIf, a.endpoint.MTU = bridge.PortName(id), &c.MTU
		a.mac = c.HardwareAddr(pod)
		a.asked, err = c.Addresses(pod)
	}
	if err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	return a, nil
}

func openNetns(path string) (netns.NsHandle, error) {
	invalid := func(err error) error {
		return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_NETNS: %s is no network namespace", path), err.Error())
	}
	if err := ns.IsNSorErr(path); err != nil {
		return netns.None(), invalid(err)
	}
	fd, err := netns.GetFromPath(path)
	if err != nil {
		return netns.None(), invalid(err)
	}
	kind, err := unix.IoctlRetInt(int(fd), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return netns.None(), invalid(errors.Join(fmt.Errorf("it is a namespace of kind %#x", kind), err, fd.Close()))
	}
	own, err := netns.Get()
	if err != nil {
		return netns.None(), ioError("open the node's network namespace", err)
	}
	defer func() { _ = own.Close() }()
	if fd.Equal(own) {
		return netns.None(), invalid(errors.Join(errors.New("it is the node's own"), fd.Close()))
	}
	return fd, nil
}

// reserve takes an address of each family and writes the endpoint record, under the node's lock (step 2).
func (a *attaching) reserve() error {
	unlock, err := endpoint.Lock()
	if err != nil {
		return ioError("reserve addresses", err)
	}
	defer unlock()
	e := &a.endpoint
	err = ipam.Assign(e.ID(), ipam.Request{Ranges: a.conf.Ranges, Addresses: a.asked}, func(addrs []endpoint.Address) error {
		e.Addresses = addrs
		if a.mac == nil {
			a.mac = bridge.PodMAC(addrs)
		}
		e.MAC = a.mac.String()
		var err error
		a.making, err = e.Begin()
		return err
	})
	if err != nil {
		return held("reserve addresses", err)
	}
	return nil
}

// ensureBridge makes the bridge if need be (step 3).
func (a *attaching) ensureBridge() error {
	mtu, gateways := a.conf.MTU, bridge.Gateways(a.endpoint.Addresses)
	if a.bridge = bridge.FindReady(mtu, gateways); a.bridge != nil {
		return nil
	}
	unlock, err := endpoint.Lock()
	if err == nil {
		defer unlock()
		a.bridge, err = bridge.Ensure(mtu, gateways)
	}
	if err != nil {
		return ioError("make the bridge", err)
	}
	return nil
}

// held is CNI error code 11 if another holds the address, or all of them; else code 5.
func held(doing string, err error) error {
	var exhausted *ipam.ExhaustedError
	var held *ipam.AssignedError
	switch {
	case errors.As(err, &exhausted):
		return types.NewError(types.ErrTryAgainLater, err.Error(), exhausted.Remedy())
	case errors.As(err, &held):
		return types.NewError(types.ErrTryAgainLater, err.Error(), "it is free again when a pod goes")
	}
	return ioError(doing, err)
}

func (a *attaching) port() bridge.Port {
	e := a.endpoint
	return bridge.Port{
		HostIf: e.HostIf, IfName: e.IfName, Netns: a.netns, MAC: a.mac, Addresses: e.Addresses, Routes: a.conf.Routes,
		Alias: "weir: " + e.Pod.String() + " " + e.IfName,
	}
}

// connect makes the link, its end on the node down (step 4).
func (a *attaching) connect() error {
	p := a.port()
	var err error
	if a.routes, err = a.bridge.AddPort(p); err != nil {
		if errors.Is(err, bridge.ErrRouteExists) {
			return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("routes: %v", err),
				"give the routes of a pod's second network a priority of their own, or leave them out: without a default route among them, "+
					"what the pod sends under this network's address leaves by it")
		}
		if errors.Is(err, bridge.ErrInterfaceExists) {
			return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_IFNAME: %s: %v", p.IfName, err), "")
		}
		if errors.Is(err, bridge.ErrMACInUse) {
			return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("mac: %s: %v", p.MAC, err), "it is free again when a pod goes")
		}
		return ioError("attach the pod", err)
	}
	return nil
}

// guard lets the port send under its own name, and closes the pod (step 5).
func (a *attaching) guard() error {
	if err := bridge.AllowSender(a.port().Sender()); err != nil {
		return ioError("guard the pod's port", err)
	}
	return a.close()
}

// close puts the pod into the sets of all pods: from here it is closed to everything that no class lets through.
func (a *attaching) close() error {
	if a.conf.Enforcement == conf.Off {
		return nil
	}
	var changes []ipset.Change
	for _, addr := range a.endpoint.Addresses {
		changes = append(changes, ipset.Change{Set: conf.FamilyOf(addr.Addr).Set(conf.PodsSet), Entry: ipset.Entry{
			Prefix: netip.PrefixFrom(addr.Addr, addr.Addr.BitLen()), Comment: conf.Comment(a.endpoint.Pod.String()),
		}})
	}
	err := ipset.Apply(changes...)
	if errors.Is(err, ipset.ErrNotExist) { // no agent has run since the node was started
		if err = a.makeSets(); err == nil {
			err = ipset.Apply(changes...)
		}
	}
	if err != nil {
		return ioError("close the pod", err)
	}
	return nil
}

// makeSets makes the sets of all pods.
func (a *attaching) makeSets() error {
	sets, err := ipset.New()
	if err != nil {
		return err
	}
	defer sets.Close()
	for _, addr := range a.endpoint.Addresses {
		family := conf.FamilyOf(addr.Addr)
		if err := sets.Create(ipset.Header{Name: family.Set(conf.PodsSet), Type: ipset.HashIP, Family: family}); err != nil {
			return err
		}
	}
	return nil
}

// enrol has the agent put the pod into its classes (step 6). Meanwhile it makes the bridge and the link (steps 3 and 4), which
// nothing passes before it is opened.
func (a *attaching) enrol() error {
	ctx, cancel := context.WithTimeout(context.Background(), enrolTimeout)
	defer cancel()
	judged := func() (agentapi.EnrolAnswer, error) { return agentapi.EnrolAnswer{}, nil }
	if a.conf.Enforcement != conf.Off {
		judged = agentapi.Enrol(ctx, a.endpoint.ID())
	}
	if !a.endpoint.Chained {
		err := a.ensureBridge()
		if err == nil {
			err = a.connect()
		}
		if err != nil {
			cancel()
			_, _ = judged() // nobody waits for it any more
			return err
		}
	}
	_, err := judged()
	switch {
	case err == nil:
		a.judged = true
		return nil
	case errors.Is(err, agentapi.ErrOutdated): // which waiting for an agent doesn't mend
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("the pod can't be reached: %v", err), "")
	case a.conf.Enforcement == conf.Closed && a.endpoint.Chained:
		return a.stayClosed(err)
	case a.conf.Enforcement == conf.Closed:
		return nil // the link stays down; the agent brings it up when it has judged the pod
	}
	return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("policy can't be enforced on the pod: %v", err),
		"enforcement is strict: no pod starts unless weir-agent has put it into its class")
}

// open brings the link up if the pod was judged (step 7).
func (a *attaching) open() error {
	if !a.judged {
		return nil
	}
	if err := bridge.SetLinkUp(a.endpoint.HostIf); err != nil {
		return ioError("open the pod's link", err)
	}
	return nil
}

// rollBack takes back what was done, as DEL would, and adds to the error what couldn't be.
func (a *attaching) rollBack(cause error) error {
	err := attachment.NewNode().TakeBack(&a.endpoint)
	var e *types.Error
	if err != nil && errors.As(cause, &e) {
		return types.NewError(e.Code, e.Msg, fmt.Sprintf("%s; left behind until DEL: %v", e.Details, err))
	}
	return cause
}

func (a *attaching) result() types.Result {
	e := a.endpoint
	r := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: conf.Bridge, Mac: a.bridge.MAC.String()},
			{Name: e.HostIf},
			{Name: e.IfName, Mac: e.MAC, Sandbox: e.Netns},
		},
		DNS: a.conf.DNS,
	}
	for _, addr := range e.Addresses {
		r.IPs = append(r.IPs, &current.IPConfig{
			Interface: current.Int(2), Gateway: addr.Gateway.AsSlice(),
			Address: net.IPNet{IP: addr.Addr.AsSlice(), Mask: net.CIDRMask(addr.Addr.BitLen(), addr.Addr.BitLen())},
		})
	}
	for _, route := range a.routes {
		r.Routes = append(r.Routes, &types.Route{
			Dst: net.IPNet{IP: route.Dst.Addr().AsSlice(), Mask: net.CIDRMask(route.Dst.Bits(), route.Dst.Addr().BitLen())},
			GW:  route.Gateway.AsSlice(), MTU: route.MTU, AdvMSS: route.AdvMSS, Priority: route.Priority, Table: route.Table, Scope: route.Scope,
		})
	}
	return r
}

// ioError is CNI error code 5: the kernel or the disk wouldn't.
func ioError(doing string, err error) error {
	return types.NewError(types.ErrIOFailure, fmt.Sprintf("%s: %v", doing, err), "")
}
