package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weir-net/weir/agent/drops"
	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/flowlog"
	"github.com/weir-net/weir/netfilter/nflog"
	"github.com/weir-net/weir/policy"
)

const (
	flowsCheck   = 10 * time.Second
	maxRecording = 7 * 24 * time.Hour
)

// flowLog records allowed connections while a recording is ordered. Otherwise the kernel has no rules that log
// flows. Any goroutine may use it.
type flowLog struct {
	wake chan struct{} // gets a message when an order has come; has room for one message

	mu           sync.Mutex
	table        *flowTable
	since, until time.Time
	recording    bool
	why          string // why the agent doesn't record, although a recording is ordered
	unknown      uint64
	stop         context.CancelFunc // ends the running recording; nil if no recording runs
}

func newFlowLog() *flowLog { return &flowLog{wake: make(chan struct{}, 1), table: newFlowTable()} }

func (l *flowLog) order(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	ordered := l.recording || now.Before(l.until) // a failed recording is tried again until l.until
	if d > 0 && !ordered {                        // a new recording begins with an empty table
		l.table, l.since, l.unknown = newFlowTable(), now, 0
	}
	l.until, l.why = now.Add(d), ""
	if d == 0 && l.stop != nil {
		l.stop()
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *flowLog) left() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Until(l.until)
}

func (l *flowLog) answer(d time.Duration) agentapi.Flows {
	l.mu.Lock()
	defer l.mu.Unlock()
	var from time.Time
	if d > 0 {
		from = time.Now().Add(-d)
	}
	return agentapi.Flows{
		Since: l.since, Until: l.until, Recording: l.recording, Why: l.why, Unknown: l.unknown,
		Forgotten: l.table.forgotten, Flows: l.table.since(from),
	}
}

// watchFlows records flows while a recording is ordered. After a failure it tries again. It never returns an error,
// because an error would end the agent.
func (a *agent) watchFlows(ctx context.Context) error {
	if err := flowlog.Remove(); err != nil { // a killed agent may have left its rules
		a.Log.Warn("rules that log flows may be left", "error", err)
	}
	if a.Flows {
		a.flows.order(100 * 365 * 24 * time.Hour)
	}
	for ctx.Err() == nil {
		wait := make(<-chan time.Time)
		if a.flows.left() > 0 {
			err := a.recordFlows(ctx)
			a.flows.ended(err)
			if err == nil {
				continue
			}
			a.Log.Warn("flows aren't recorded", "error", err)
			wait = time.After(dropsRetry)
		}
		select {
		case <-ctx.Done():
		case <-a.flows.wake:
		case <-wait:
		}
	}
	return nil
}

func (l *flowLog) ended(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recording, l.stop, l.why = false, nil, ""
	if err != nil {
		l.why = err.Error()
	}
}

func (a *agent) recordFlows(ctx context.Context) (err error) {
	reader, err := nflog.Open(conf.FlowGroup)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	defer func() { err = errors.Join(err, flowlog.Remove()) }()
	reading, stop := context.WithCancel(ctx)
	defer stop()
	r := recording{agent: a, sums: drops.NewSums()}
	r.sums.IsPod = r.known.contains
	if err := r.check(); err != nil {
		return err
	}
	a.flows.mu.Lock()
	a.flows.recording, a.flows.stop = true, stop
	a.flows.mu.Unlock()
	wait := flowsCheck
	for reading.Err() == nil {
		left := a.flows.left()
		if left <= 0 {
			break
		}
		r.known.stale = true
		lost, err := reader.Read(reading, min(wait, left), r.count)
		r.sums.At(time.Now())
		r.sums.Lost(lost)
		lines, more := r.sums.Lines(nil)
		r.addFlows(ctx, lines)
		if err == nil && time.Since(r.checked) >= flowsCheck {
			err = r.check()
		}
		if err != nil {
			return err
		}
		if wait = flowsCheck; more {
			wait = dropsWait
		}
		select {
		case <-reading.Done():
		case <-time.After(dropsPause):
		}
	}
	_, err = r.countBeyond()
	r.addFlows(ctx, r.sums.Rest())
	return err
}

type recording struct {
	*agent
	sums    *drops.Sums
	known   podNetworks
	view    dropView
	links   []string
	checked time.Time
	// beyond is how many packets the kernel had not logged by the last check, because the rules limit the logging.
	beyond uint64
}

func (r *recording) count(p *nflog.Packet) {
	if r.known.stale {
		r.known.load(r.snapshots.target.Load())
		r.sums.At(time.Now())
	}
	r.sums.Add(p)
}

func (r *recording) check() error {
	r.checked = time.Now()
	there, err := r.countBeyond()
	if err != nil {
		return err
	}
	links := flowLinks(r.snapshots.target.Load())
	if there && slices.Equal(links, r.links) {
		return nil
	}
	r.links, r.beyond = links, 0
	return flowlog.Make(links)
}

func (r *recording) countBeyond() (there bool, err error) {
	beyond, there, err := flowlog.Beyond()
	if err == nil {
		r.sums.Lost(beyond - min(beyond, r.beyond))
		r.beyond = beyond
	}
	return there, err
}

// flowLinks returns the links by which packets of this node's pods come in: weir0, and the links of chained
// attachments.
func flowLinks(s *snapshot) []string {
	links := []string{conf.Bridge}
	for _, l := range s.links() {
		if l.In != "" {
			links = append(links, l.In)
		}
	}
	slices.Sort(links)
	return slices.Compact(links)
}

// addFlows adds the lines to the flows. Packets whose addresses are unknown, because the packets were lost or left out,
// are only counted.
func (r *recording) addFlows(ctx context.Context, lines []drops.Line) {
	if len(lines) == 0 {
		return
	}
	r.view.load(r.snapshots.target.Load())
	state, _ := r.stateAround(ctx, addressesOf(lines))
	r.flows.mu.Lock()
	defer r.flows.mu.Unlock()
	for _, l := range lines {
		if l.Kind != agentapi.DropShown || !l.Flow.Source().IsValid() {
			r.flows.unknown += l.Count
			continue
		}
		r.flows.table.add(agentapi.Flow{
			Source: r.end(l.Flow.Source(), state), Destination: r.end(l.Flow.Destination(), state),
			Protocol: protocolName(l.Flow.Proto), Port: l.Flow.DstPort, Count: l.Count, First: l.Time, Last: l.Time,
		})
	}
}

// end returns the pod, the node and the labels that belong to the address, as one end of a flow. It leaves out the
// labels if several pods may have the address.
func (r *recording) end(address netip.Addr, state policy.State) agentapi.FlowEnd {
	end := agentapi.FlowEnd{Address: address, Pod: r.view.pods[address], Node: r.view.nodes[address]}
	var found []*policy.Pod
	for i := range state.Pods {
		p := &state.Pods[i]
		name := p.Namespace + "/" + p.Name
		if end.Pod == name || end.Pod == "" && !p.HostNetwork && !p.Finished && slices.Contains(p.Addresses, address) {
			found = append(found, p)
		}
	}
	var names []string
	for _, p := range found {
		names = append(names, p.Namespace+"/"+p.Name)
	}
	slices.Sort(names)
	if end.Pod == "" {
		end.Pod = strings.Join(slices.Compact(names), ",")
	}
	if end.Node == "" {
		end.Pod = r.view.podAt(address, end.Pod)
	}
	if len(found) == 1 {
		if end.Labels = found[0].Labels; end.Labels == nil {
			end.Labels = map[string]string{}
		}
	}
	return end
}

func (a *agent) serveFlows(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		var order agentapi.FlowsOrder
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&order)
		if err == nil && (order.For < 0 || order.For > maxRecording) {
			err = errors.New("for: must be a time from 0 to 168h")
		}
		if err == nil && a.Flows {
			err = errors.New("this agent runs with --flows, so it records all the time")
		}
		if err != nil {
			refuse(w, http.StatusBadRequest, err)
			return
		}
		a.flows.order(order.For)
	}
	var since time.Duration
	if s := r.URL.Query().Get("since"); s != "" {
		var err error
		if since, err = time.ParseDuration(s); err != nil || since < 0 {
			refuse(w, http.StatusBadRequest, errors.New("since: must be a duration such as 1h"))
			return
		}
	}
	answer := a.flows.answer(since)
	answer.Node = a.Node.Name
	writeJSON(w, http.StatusOK, answer)
}
