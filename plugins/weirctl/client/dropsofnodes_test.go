package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-net/weir/agentapi"
)

func dropAt(node string, count uint64, at time.Time) *agentapi.Drop {
	return &agentapi.Drop{Kind: agentapi.DropShown, Time: at, Count: count, Node: node, Direction: "ingress"}
}

type told struct {
	mu    sync.Mutex
	lines []string
	drops []*agentapi.Drop
	fails error
}

func (o *told) tell(line string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lines = append(o.lines, line)
}

func (o *told) print(d *agentapi.Drop) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drops = append(o.drops, d)
	return o.fails
}

func (o *told) counts() (all []uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, d := range o.drops {
		all = append(all, d.Count)
	}
	return all
}

func (o *told) until(t *testing.T, what string, check func(*told) bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		o.mu.Lock()
		ok, lines := check(o), strings.Join(o.lines, "\n")
		o.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v; told:\n%s", what, o.counts(), lines)
		}
	}
}

func (o *told) untilTold(t *testing.T, text string) {
	t.Helper()
	o.until(t, text, func(o *told) bool {
		return slices.ContainsFunc(o.lines, func(l string) bool { return strings.Contains(l, text) })
	})
}

// TestDropsOfNodes: the drops of all nodes are printed in the order of their times. Nodes that don't answer, or answer
// only in part, are named.
func TestDropsOfNodes(t *testing.T) {
	f := &fakeCluster{}
	for _, n := range []string{"a", "b", "old", "breaks", "unasked"} {
		f.add(n)
	}
	begin := time.Unix(1e9, 0)
	q := agentapi.DropsQuery{Namespace: "shop", Port: 5432, Since: time.Hour}
	f.handle = func(node string, w http.ResponseWriter, r *http.Request) {
		got, err := agentapi.ParseDropsQuery(r.URL.Query())
		if err != nil || got != q || r.URL.Path != agentapi.DropsPath || node == "unasked" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		out := json.NewEncoder(w)
		for i := range uint64(3) {
			switch node {
			case "a":
				_ = out.Encode(dropAt("a", 2*i, begin.Add(time.Duration(2*i)*time.Second)))
			case "b":
				_ = out.Encode(dropAt("", 2*i+1, begin.Add(time.Duration(2*i+1)*time.Second)))
			}
		}
		switch node {
		case "breaks":
			_ = out.Encode(dropAt("breaks", 6, begin.Add(6*time.Second)))
			_, _ = io.WriteString(w, `{"kind": "dr`)
		case "old":
			http.NotFound(w, r)
		}
	}
	var o told
	ask := DropsOfNodes{
		Query: q, Nodes: []string{"b", "a", "old", "breaks", "a"}, Print: o.print, Tell: o.tell,
		AskOptions: AskOptions{Parallel: 2, Within: time.Minute},
	}
	err := f.start(t).Drops(t.Context(), ask, nil)
	if err == nil || err.Error() != "2 of 4 nodes have not answered" {
		t.Error(err)
	}
	if got := o.counts(); !slices.Equal(got, []uint64{0, 1, 2, 3, 4, 5, 6}) {
		t.Errorf("%v", got)
	}
	want := []string{
		"breaks: the pod weir-breaks has ended without an answer",
		"old: the agent on this node is older than weirctl and doesn't know this command: update it",
	}
	if !slices.Equal(o.lines, want) || o.drops[1].Node != "b" {
		t.Errorf("%q, %+v", o.lines, o.drops[1])
	}
	ask.Nodes = []string{"c"}
	if code, text := Code(f.start(t).Drops(t.Context(), ask, nil)); code != ExitUsage || !strings.Contains(text, `"c"`) {
		t.Errorf("%d, %s", code, text)
	}
}

// TestDropsOfNodesAreBounded: if there are too many drops, the newest are kept, and older drops are only counted.
func TestDropsOfNodesAreBounded(t *testing.T) {
	defer func(was int) { maxKept = was }(maxKept)
	maxKept = 5
	f := &fakeCluster{}
	for i := range 7 {
		f.add(fmt.Sprintf("n%d", i))
	}
	f.handle = func(node string, w http.ResponseWriter, _ *http.Request) {
		for i := range uint64(4) {
			_ = json.NewEncoder(w).Encode(dropAt(node, 10*uint64(node[1]-'0')+i, time.Unix(int64(i), int64(node[1]))))
		}
	}
	var o told
	ask := DropsOfNodes{Print: o.print, Tell: o.tell, AskOptions: AskOptions{Parallel: 3, Within: time.Minute}}
	if err := f.start(t).Drops(t.Context(), ask, nil); err != nil {
		t.Error(err)
	}
	if got := o.counts(); !slices.Equal(got, []uint64{23, 33, 43, 53, 63}) {
		t.Errorf("%v", got)
	}
	if len(o.lines) != 1 || !strings.HasPrefix(o.lines[0], "23 older drops are left out") {
		t.Errorf("%q", o.lines)
	}
}

type liveNode struct {
	mu    sync.Mutex
	past  []*agentapi.Drop
	news  chan *agentapi.Drop
	ends  chan struct{} // a value ends the stream
	asked []agentapi.DropsQuery
}

type liveCluster struct {
	*fakeCluster
	mu    sync.Mutex // guards the lists of nodes and pods
	nodes map[string]*liveNode
}

func newLiveCluster(names ...string) *liveCluster {
	c := &liveCluster{fakeCluster: &fakeCluster{}, nodes: map[string]*liveNode{}}
	for _, n := range names {
		c.join(n)
	}
	c.handle = func(node string, w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		n := c.nodes[node]
		c.mu.Unlock()
		n.serve(w, r)
	}
	c.guard = &c.mu
	return c
}

func (c *liveCluster) join(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(name)
	c.nodes[name] = &liveNode{news: make(chan *agentapi.Drop), ends: make(chan struct{})}
}

func (c *liveCluster) leave(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.pods, func(p corev1.Pod) bool { return p.Spec.NodeName == name })
	c.pods, c.fakeCluster.nodes = slices.Delete(c.pods, i, i+1), slices.Delete(c.fakeCluster.nodes, i, i+1)
}

func (n *liveNode) serve(w http.ResponseWriter, r *http.Request) {
	q, _ := agentapi.ParseDropsQuery(r.URL.Query())
	n.mu.Lock()
	n.asked = append(n.asked, q)
	past := n.past
	n.mu.Unlock()
	_, _ = io.WriteString(w, "{}\n")
	out := json.NewEncoder(w)
	for _, d := range past {
		if q.Since > 0 {
			_ = out.Encode(d)
		}
	}
	for {
		select {
		case d := <-n.news:
			if out.Encode(d) != nil {
				return
			}
		case <-n.ends:
			return
		case <-r.Context().Done():
			return
		}
	}
}

var quickly = FollowTimes{
	Window: 200 * time.Millisecond, Opens: time.Minute, Silent: time.Minute, Retry: 10 * time.Millisecond,
	Retries: 20 * time.Millisecond, Look: 20 * time.Millisecond,
}

func followAll(t *testing.T, c *liveCluster, o *told, times FollowTimes) (end func() error) {
	t.Helper()
	ctx, stop := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	cluster := c.start(t)
	go func() {
		done <- cluster.FollowDrops(ctx, DropsOfNodes{
			Query: agentapi.DropsQuery{Follow: true, Namespace: "shop"}, Print: o.print, Tell: o.tell,
			AskOptions: AskOptions{Parallel: 2, Within: time.Minute},
		}, times)
	}()
	return sync.OnceValue(func() error {
		stop(errInterrupted)
		return <-done
	})
}

var errInterrupted = errors.New("interrupted")

// TestFollowDrops: if several nodes have drops, the drops are printed in the order of their times. A drop that a node
// sends again in a new stream isn't printed again. Nodes that fail, join or leave are named.
func TestFollowDrops(t *testing.T) {
	c := newLiveCluster("a", "b", "dead", "leaves")
	c.fails = func(node string) string {
		if node == "dead" {
			return "weirctl: no agent answers on /run/weir/agent.sock: connection refused"
		}
		return ""
	}
	times := quickly
	times.Window = 5 * time.Second // the drops of all nodes must come within this time also on a busy machine
	var o told
	end := followAll(t, c, &o, times)
	defer func() { _ = end() }()
	o.untilTold(t, "following the drops of 3 of 4 nodes")
	o.untilTold(t, "dead: no agent answers on /run/weir/agent.sock: connection refused; trying again")
	begin := time.Now()
	at := func(i int) time.Time { return begin.Add(time.Duration(i) * time.Millisecond) }
	c.nodes["b"].news <- dropAt("b", 2, at(2))
	c.nodes["a"].news <- dropAt("a", 1, at(1))
	c.nodes["leaves"].news <- dropAt("leaves", 3, at(3))
	o.until(t, "three drops", func(o *told) bool { return len(o.drops) == 3 })
	if got := o.counts(); !slices.Equal(got, []uint64{1, 2, 3}) {
		t.Errorf("%v", got)
	}

	c.nodes["a"].mu.Lock()
	c.nodes["a"].past = []*agentapi.Drop{dropAt("a", 1, at(1)), dropAt("a", 4, at(4))}
	c.nodes["a"].mu.Unlock()
	c.nodes["a"].ends <- struct{}{}
	o.untilTold(t, "a: the agent has ended; trying again")
	o.untilTold(t, "a: sends drops again")
	c.join("late")
	o.untilTold(t, "late: the node is new")
	c.leave("leaves")
	o.untilTold(t, "leaves: the node is gone")
	c.nodes["late"].news <- dropAt("late", 5, at(5))
	o.until(t, "five drops", func(o *told) bool { return len(o.drops) == 5 })
	if got := o.counts(); !slices.Equal(got, []uint64{1, 2, 3, 4, 5}) {
		t.Errorf("%v", got)
	}
	if asked := c.nodes["a"].asked; asked[0].Since != 0 || asked[0].Namespace != "shop" || asked[1].Since < again {
		t.Errorf("%+v", asked)
	}
	if err := end(); !errors.Is(err, errInterrupted) {
		t.Error(err)
	}
	for c.now.Load() > 0 { // wait until the streams of all nodes have ended
		time.Sleep(time.Millisecond)
	}
}

// TestFollowSilentNodes: a node that hangs or falls silent is named, and the drops of other nodes still come.
func TestFollowSilentNodes(t *testing.T) {
	c := newLiveCluster("a", "hangs1", "hangs2", "silent")
	handle := c.handle
	c.handle = func(node string, w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(node, "hangs") {
			<-r.Context().Done()
			return
		}
		handle(node, w, r)
	}
	times := quickly
	times.Opens, times.Silent = 10*time.Second, 15*time.Second // node a must keep these times also on a busy machine
	var o told
	end := followAll(t, c, &o, times)
	defer func() { _ = end() }()
	stop := make(chan struct{})
	defer close(stop)
	go func() { // node a sends drops all the time, so it isn't silent
		for i := uint64(0); ; i++ {
			select {
			case c.nodes["a"].news <- dropAt("a", i, time.Now()):
			case <-stop:
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	o.untilTold(t, "hangs1: no answer within 10s; trying again")
	o.untilTold(t, "hangs2: no answer within 10s; trying again")
	o.untilTold(t, "silent: no sign of life for 15s; trying again")
	o.until(t, "drops of a", func(o *told) bool { return len(o.drops) > 10 })
	o.mu.Lock()
	defer o.mu.Unlock()
	if slices.ContainsFunc(o.lines, func(l string) bool { return strings.HasPrefix(l, "a:") }) {
		t.Errorf("%q", o.lines)
	}
}

// TestFollowEnds: if the user may not run commands, or the output can't be written, the command ends.
func TestFollowEnds(t *testing.T) {
	c := newLiveCluster("a", "b")
	c.forbid = true
	var o told
	err := c.start(t).FollowDrops(t.Context(), DropsOfNodes{Print: o.print, Tell: o.tell}, quickly)
	if !errors.As(err, new(*forbiddenError)) {
		t.Error(err)
	}
	c = newLiveCluster("a")
	o = told{fails: io.ErrClosedPipe}
	go func() { c.nodes["a"].news <- dropAt("a", 1, time.Now()) }()
	err = c.start(t).FollowDrops(t.Context(), DropsOfNodes{Print: o.print, Tell: o.tell}, quickly)
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

// TestDropOrder: dropOrder sorts drops that come within the window by their times. If a node's clock is ahead, the
// node's drops wait no longer than the drops of other nodes.
func TestDropOrder(t *testing.T) {
	o := dropOrder{window: 100}
	now := time.Unix(1e9, 0)
	o.add(dropAt("a", 3, now.Add(3)), now)
	o.add(dropAt("ahead", 9, now.Add(time.Hour)), now.Add(10))
	o.add(dropAt("b", 1, now.Add(1)), now.Add(50))
	for _, step := range []struct {
		after time.Duration
		want  []uint64
		next  time.Duration
	}{{99, nil, 1}, {100, []uint64{1, 3}, 10}, {109, nil, 1}, {110, []uint64{9}, 0}, {500, nil, 0}} {
		due, next := o.due(now.Add(step.after))
		var got []uint64
		for _, d := range due {
			got = append(got, d.Count)
		}
		if !slices.Equal(got, step.want) || next != step.next {
			t.Errorf("after %d: %v, then wait %d", step.after, got, next)
		}
	}
}

// TestDropsThatDifferInTheirReason: two drops that differ only in their reason or in the type of an ICMP packet are
// both new. A drop that the node's next stream repeats isn't new.
func TestDropsThatDifferInTheirReason(t *testing.T) {
	n := nodeFollower{recent: map[string]time.Time{}}
	guard := agentapi.Drop{Kind: agentapi.DropMore, Count: 1, Reason: agentapi.ByGuard}
	discovery, echo := guard, guard
	discovery.Reason, echo.ICMP = agentapi.ByDiscovery, "type 8 code 0"
	for i, d := range []agentapi.Drop{guard, discovery, echo, guard} {
		if n.isNew(&d, time.Now()) != (i < 3) {
			t.Errorf("drop %d: %+v", i, d)
		}
	}
}
