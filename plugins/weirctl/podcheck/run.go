package podcheck

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/conf"
	weirctl "github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/plugins/weirctl/probe"
)

// Check tests a cluster's network with pods of its own (Run). Its fields are the options of kubectl weir check.
type Check struct {
	*weirctl.Cluster
	// Nodes are the nodes to check. If it is empty, at most MaxNodes nodes are chosen at random.
	Nodes    []string
	MaxNodes int
	// Image is the pods' image. If it is empty, weir's own image is used.
	Image string
	// World is a host and port outside of the cluster. If it is empty, the check World is skipped.
	World string
	// Parallel bounds how many pods run their probes at the same time.
	Parallel int
	// Ends is how long the check may take. Its pods end by themselves a minute later.
	Ends  time.Duration
	Times Times
	// Tell is called with each line of the report as soon as the line is known.
	Tell     func(Line)
	Progress *weirctl.Progress
}

type run struct {
	namespace string
	nodes     []weirctl.Agent
	works     []int // indexes in nodes, of the nodes whose pods are ready
	addresses map[string]map[conf.Family]netip.Addr
	service   map[conf.Family]netip.Addr
	nodePort  uint16
	internal  map[int]map[conf.Family]netip.Addr // the InternalIPs of nodes, by index in nodes
	direct    map[direct]bool                    // true if the connection from pod to pod works
	report    *Report
}

func (r *run) first() int { return r.works[0] }

// Run makes the check, and removes its namespace at the end. The error is nil if the check was finished, whatever
// the result. After an error the report is incomplete, or nil if Run has ended before it made the namespace.
func (c *Check) Run(ctx context.Context) (*Report, error) {
	if c.World != "" && !validWorld(c.World) {
		return nil, weirctl.Usage(fmt.Errorf("--world %s: must be HOST:PORT, such as example.com:443", c.World))
	}
	r := &run{
		namespace: newName(), addresses: map[string]map[conf.Family]netip.Addr{}, service: map[conf.Family]netip.Addr{},
		internal: map[int]map[conf.Family]netip.Addr{}, direct: map[direct]bool{},
	}
	r.report = &Report{Namespace: r.namespace}
	if err := c.choose(ctx, r); err != nil {
		return nil, err
	}
	old, err := c.listNamespaces(ctx)
	if err != nil {
		return nil, err
	}
	alive, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	err = c.create(ctx, "", namespaceObject(r.namespace))
	if apierrors.ReasonForError(err) != metav1.StatusReasonUnknown { // the API server has refused
		stop()
		return nil, err
	}
	if err == nil {
		running.Go(func() { c.stayAlive(alive, r.namespace) })
		err = c.phases(ctx, r)
	}
	var removed []string
	if err == nil {
		removed, err = c.removeLeftovers(ctx, old)
	}
	stop()
	running.Wait()
	c.Progress.Say("removing the namespace %s", r.namespace)
	// The namespace is removed also after Ctrl-C. It may exist even if its creation got no answer.
	left := c.remove(context.WithoutCancel(ctx), r.namespace)
	c.Progress.Clear()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	switch {
	case err != nil && left != nil:
		return r.report, fmt.Errorf("%w; %w", err, left)
	case err != nil:
		return r.report, fmt.Errorf("%w; the namespace %s is removed", err, r.namespace)
	}
	line := Line{CleanUp, OK, "the namespace " + r.namespace + " is removed"}
	if left != nil {
		line.State, line.Detail = Broken, left.Error()
	}
	if len(removed) > 0 {
		line.Detail += "; so are those that earlier checks have left: " + strings.Join(removed, ", ")
	}
	c.tell(r, line)
	return r.report, nil
}

func (c *Check) tell(r *run, l Line) {
	r.report.Lines = append(r.report.Lines, l)
	c.Progress.Clear()
	c.Tell(l)
}

// choose chooses the nodes to check. It leaves out nodes that aren't ready or whose agents can't be asked. The line
// of the check Nodes is then BROKEN.
func (c *Check) choose(ctx context.Context, r *run) error {
	agents, err := c.Wanted(ctx, c.Nodes)
	if err != nil {
		return err
	}
	var away []string
	for _, a := range agents {
		if why := a.Away + a.Down; why != "" {
			away = append(away, fmt.Sprintf("%s is left out: %s", a.Node, why))
			continue
		}
		r.nodes = append(r.nodes, a)
	}
	all := len(r.nodes)
	if len(c.Nodes) == 0 && all > c.MaxNodes {
		rand.Shuffle(all, func(i, j int) { r.nodes[i], r.nodes[j] = r.nodes[j], r.nodes[i] })
		r.nodes = r.nodes[:c.MaxNodes]
		slices.SortFunc(r.nodes, func(a, b weirctl.Agent) int { return strings.Compare(a.Node, b.Node) })
	}
	for _, n := range r.nodes {
		r.report.Nodes = append(r.report.Nodes, n.Node)
	}
	line := Line{Nodes, OK, strings.Join(r.report.Nodes, ", ")}
	if len(r.nodes) < all {
		line.Detail = fmt.Sprintf("%d of %d: %s", len(r.nodes), all, line.Detail)
	}
	if len(away) > 0 {
		line.State = Broken
		if more := len(away) - maxPairs; more > 0 {
			away = append(away[:maxPairs], fmt.Sprintf("and %d more", more))
		}
		line.Detail = strings.Join(away, "; ")
	}
	c.tell(r, line)
	if len(r.nodes) == 0 {
		return errNoNodes
	}
	return nil
}

func (c *Check) phases(ctx context.Context, r *run) error {
	line, err := c.startPods(ctx, r)
	if err != nil {
		return err
	}
	c.tell(r, line)
	if len(r.works) == 0 {
		return nil
	}
	if err := c.startService(ctx, r); err != nil {
		return err
	}
	if err := c.openPhase(ctx, r); err != nil {
		return err
	}
	return c.policyPhases(ctx, r)
}

var hints = map[Name]string{
	SameNode: "see weirctl check on the node",
	Across: "does the network let packets between the nodes pass, in tunnels UDP port 4789 (--overlay-port)? " +
		"weirctl check on the nodes says more",
	Large: "the network between the nodes carries less than the MTU of the pods and the tunnel's header: " +
		"set mtu in the network configuration",
	Service:  "kube-proxy on the node doesn't lead to the Service's pod",
	DNS:      "see kubectl -n kube-system get pods -l k8s-app=kube-dns",
	NodePort: "kube-proxy on the node that receives the packet doesn't lead to the Service's pod",
}

// openPhase makes all attempts before there are policies. It repeats failed attempts, because kube-proxy and DNS
// learn of the Service late.
func (c *Check) openPhase(ctx context.Context, r *run) error {
	attempts := r.open(c.Times.Reach, c.World)
	outcomes := make([]Outcome, len(attempts))
	pending := make([]int, len(attempts))
	for i := range pending {
		pending[i] = i
	}
	for deadline := time.Now().Add(c.Times.Applies); len(pending) > 0; {
		c.Progress.Say("%d attempts", len(pending))
		some := make([]attempt, len(pending))
		for i, n := range pending {
			some[i] = attempts[n]
		}
		results, err := c.try(ctx, r, some)
		if err != nil {
			return err
		}
		var again []int
		for i, n := range pending {
			if outcomes[n] = r.outcome(attempts[n], results[i]); !outcomes[n].OK {
				again = append(again, n)
			}
		}
		if pending = again; time.Now().After(deadline) {
			break
		}
		if len(pending) > 0 && !wait(ctx, c.Times.Poll) {
			return context.Cause(ctx)
		}
	}
	for i, a := range attempts {
		if a.check == SameNode || a.check == Across {
			r.direct[direct{a.from, a.to, a.family}] = outcomes[i].OK
		}
	}
	for _, check := range []Name{SameNode, Across, Large, Service, DNS, NodePort, World} {
		if check == World && c.World == "" {
			c.tell(r, Line{World, Skipped, "--world HOST:PORT tries to reach a host outside of the cluster"})
			continue
		}
		var its []Outcome
		for i, a := range attempts {
			if a.check == check && r.possible(a) && (check != DNS || outcomes[i].OK || r.allDirect()) {
				its = append(its, outcomes[i])
			}
		}
		c.tell(r, lineOf(check, its, hints[check]))
	}
	return nil
}

// allDirect reports whether all direct connections (from pod to pod) work. If a direct connection fails, DNS may
// fail for the same reason.
func (r *run) allDirect() bool {
	for _, works := range r.direct {
		if !works {
			return false
		}
	}
	return true
}

func (r *run) possible(a attempt) bool {
	return !slices.ContainsFunc(a.needs, func(d direct) bool { return !r.direct[d] })
}

type tried struct {
	probe.Result
	err error
}

// try returns an error if the user may not run commands in pods, or if ctx has ended. Other failures are in the
// results.
func (c *Check) try(ctx context.Context, r *run, attempts []attempt) ([]tried, error) {
	results := make([]tried, len(attempts))
	by := map[int][]int{} // the indexes of attempts, by the client's node
	for i, a := range attempts {
		by[a.from] = append(by[a.from], i)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	room := make(chan struct{}, max(c.Parallel, 1))
	var all sync.WaitGroup
	for node, mine := range by {
		room <- struct{}{}
		all.Go(func() {
			defer func() { <-room }()
			probes := make([]probe.Probe, len(mine))
			for i, n := range mine {
				probes[i] = attempts[n].Probe
			}
			got, err := c.runIn(ctx, r.namespace, podName(client, node), probes)
			if weirctl.IsForbidden(err) {
				stop(err)
			}
			for i, n := range mine {
				if results[n].err = err; err == nil {
					results[n].Result = got[i]
				}
			}
		})
	}
	all.Wait()
	return results, context.Cause(ctx)
}

// probesWithin is the time that the exec in the pod may take, in addition to the time of the probes.
const probesWithin = 20 * time.Second

func (c *Check) runIn(ctx context.Context, namespace, pod string, probes []probe.Probe) ([]probe.Result, error) {
	longest := time.Duration(0)
	for _, p := range probes {
		longest += p.Within
	}
	ctx, cancel := context.WithTimeout(ctx, longest+probesWithin)
	defer cancel()
	question, err := json.Marshal(probes)
	if err != nil {
		return nil, err
	}
	var answer bytes.Buffer
	err = c.Exec(ctx, weirctl.Command{
		Namespace: namespace, Pod: pod, Container: container, Args: []string{"/usr/bin/weirctl", "probe", "run"},
	}, bytes.NewReader(question), &answer)
	if err != nil {
		return nil, err
	}
	var results []probe.Result
	if err := json.Unmarshal(answer.Bytes(), &results); err != nil || len(results) != len(probes) {
		return nil, fmt.Errorf("%s answers %.100q", pod, answer.String())
	}
	return results, nil
}
