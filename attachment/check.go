package attachment

import (
	"errors"
	"fmt"
	"io/fs"
	"net"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
)

// Expected has the values that CHECK compares with the attachment, in addition to the values in the record.
type Expected struct {
	Netns  string // path of the pod's network namespace
	MTU    int    // 0 if the link's end on the node may have any MTU
	Routes []conf.Route
	// OnNode and InPod are the interfaces of CNI's prevResult, including the interfaces of plugins after weir.
	OnNode, InPod []bridge.Interface
	// Addresses are the addresses of CNI's prevResult. They matter only for a chained attachment.
	Addresses []endpoint.Address
}

// Load reads the record of the attachment with this ID. The error is *NoRecordError or *StepError.
func Load(id string) (*endpoint.Endpoint, error) {
	e, err := endpoint.Load(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &NoRecordError{ID: id}
	}
	return e, failed("check", err)
}

// Check returns a *StepError that names each part of the attachment that is missing or changed. It returns a
// *NetnsError if want.Netns is no network namespace, or is the node's own. Check accepts any class of the pod, because
// only the agent knows the right class.
func (n Node) Check(e *endpoint.Endpoint, want Expected) error {
	fd, err := openNetns(want.Netns)
	if err != nil {
		return err
	}
	defer func() { _ = fd.Close() }()
	if e.Chained {
		return failed("check", errors.Join(checkChained(e, want.Addresses), n.checkSets(e), checkOwner(e)))
	}
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return &StepError{"open netlink", err}
	}
	defer links.Close()
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return &StepError{"check", fmt.Errorf("endpoint record %s: %w", e.ID(), err)}
	}
	p := bridge.Port{HostIf: e.HostIf, IfName: e.IfName, Netns: fd, MAC: mac, Addresses: e.Addresses, Routes: want.Routes}
	return failed("check", errors.Join(
		bridge.Check(links, p, want.MTU), checkGuard(p), n.checkSets(e), checkOwner(e), checkInterfaces(links, fd, want),
	))
}

func checkGuard(p bridge.Port) error {
	ok, err := bridge.SenderAllowed(p.Sender())
	if err == nil && !ok {
		return fmt.Errorf("the guard does not let %s send as %s", p.HostIf, p.MAC)
	}
	return err
}

func checkOwner(e *endpoint.Endpoint) error {
	var errs []error
	for _, a := range e.Addresses {
		owner, err := ipam.AssignedTo(a.Addr)
		if err == nil && owner != e.ID() {
			err = fmt.Errorf("%s is assigned to %q, not to %s", a.Addr, owner, e.ID())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (n Node) checkSets(e *endpoint.Endpoint) error {
	if e.Enforcement == conf.Off {
		return nil
	}
	return n.Sets.Check(addrsOf(e.Addresses)...)
}

func checkInterfaces(links netlinksafe.Handle, fd netns.NsHandle, want Expected) error {
	pod, err := netlinksafe.NewHandleAt(fd, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the pod's namespace: %w", err)
	}
	defer pod.Close()
	return errors.Join(
		bridge.CheckInterfaces(links, "on the node", want.OnNode),
		bridge.CheckInterfaces(pod, "in the pod", want.InPod),
	)
}

// CheckAgent returns nil if the heartbeat file says that an agent was ready within agentapi.BeatLasts. The
// error is *NoAgentError or *StepError.
func CheckAgent() error {
	since, ever, err := agentapi.SinceBeat()
	switch {
	case err != nil:
		return &StepError{"status", err}
	case !ever:
		return &NoAgentError{}
	case since > agentapi.BeatLasts:
		return &NoAgentError{For: since}
	}
	return nil
}
