package attachment

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/ipam"
)

// Expected is what CHECK knows of an attachment besides its record.
type Expected struct {
	Netns  string // path of the pod's network namespace
	MTU    int    // 0: whatever the link's end on the node has
	Routes []conf.Route
	// OnNode and InPod are the interfaces of the last result, also those that other plugins made after weir.
	OnNode, InPod []bridge.Interface
	// Addresses are those of the last result; they count for a chained attachment.
	Addresses []endpoint.Address
}

// Load reads the record of the attachment with that ID. The error is *NoRecordError or *StepError.
func Load(id string) (*endpoint.Endpoint, error) {
	e, err := endpoint.Load(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &NoRecordError{ID: id}
	}
	return e, failed("check", err)
}

// Check verifies that everything that Make has made is there and right. Its *StepError names all that isn't; it is a
// *NetnsError if there is no such namespace. The agent alone knows which class a pod is in; from the sets follows
// that it is in one for each direction.
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

// checkGuard verifies that the guard lets the port send.
func checkGuard(p bridge.Port) error {
	ok, err := bridge.SenderAllowed(p.Sender())
	if err == nil && !ok {
		return fmt.Errorf("the spoof guard does not let %s send as %s", p.HostIf, p.MAC)
	}
	return err
}

// checkOwner verifies that the addresses are assigned to the attachment: otherwise another pod could get them.
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

// checkInterfaces verifies that the interfaces of the last result are there. Plugins after weir check theirs in
// detail.
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

// CheckAgent returns nil if an agent has been ready lately, so that an ADD with enforcement "strict" can succeed. It
// looks at the heartbeat file and doesn't ask the agent, so that a node stays ready while its agent is being
// replaced. The error is *NoAgentError or *StepError.
func CheckAgent(now time.Time) error {
	beat, err := agentapi.LastBeat()
	if err != nil {
		return &StepError{"status", err}
	}
	if beat.IsZero() {
		return &NoAgentError{}
	}
	if since := now.Sub(beat); since > agentapi.BeatLasts {
		return &NoAgentError{For: since}
	}
	return nil
}
