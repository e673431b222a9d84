package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/overlay"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/test/nodetest"
)

type cluster struct {
	updates chan update

	mu      sync.Mutex
	contact error
}

type update struct {
	objects *policy.Objects
	err     error
}

func newCluster() *cluster { return &cluster{updates: make(chan update)} }

func (c *cluster) Run(ctx context.Context, tell func(*policy.Delta, error)) error {
	var last policy.Objects
	for {
		select {
		case <-ctx.Done():
			return nil
		case u := <-c.updates:
			if u.objects == nil {
				tell(nil, u.err)
				continue
			}
			d := policy.Difference(last, *u.objects)
			last = *u.objects
			tell(d, u.err)
		}
	}
}

func (c *cluster) Contact() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.contact
}

func (c *cluster) setContact(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.contact = err
}

type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) count(words ...string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := 0
lines:
	for line := range strings.Lines(j.b.String()) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue lines
			}
		}
		n++
	}
	return n
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

const healthAddress = "127.0.0.1:6786"

// running is a test with an agent, on a node of its own (nodetest.Isolated). The node's Node object is named self.
type running struct {
	*testing.T
	*cluster
	log journal
}

func start(t *testing.T) *running {
	t.Helper()
	c := newCluster()
	return startWith(t, c, Options{Source: c, Resync: 50 * time.Millisecond, EnrolWait: 100 * time.Millisecond})
}

func startWith(t *testing.T, c *cluster, o Options) *running {
	t.Helper()
	nodetest.Outside(t)
	r := &running{T: t, cluster: c}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	o.Log, o.HealthAddress = slog.New(slog.NewTextHandler(&r.log, nil)), healthAddress
	o.Node = NodeOptions{
		Name:    "self",
		Overlay: overlay.Options{Encapsulation: overlay.Always, Port: conf.OverlayPort, VNI: conf.OverlayVNI},
	}
	o.Backends = []BackendKind{{New: func(ctx context.Context) (Backend, error) { return iptables.New(ctx) }}}
	go func() { done <- Run(ctx, o) }()
	t.Cleanup(func() {
		cancel()
		if err := receive(t, done); err != nil {
			t.Errorf("the agent ended with %v", err)
		}
		if t.Failed() || testing.Verbose() {
			t.Logf("the agent said:\n%s", r.log.String())
		}
	})
	r.eventually("the agent answers", func() error {
		_, err := r.get("/healthz")
		return err
	})
	return r
}

func (r *running) eventually(what string, f func() error) {
	r.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.Fatalf("%s: not within a minute: %v", what, err)
		}
	}
}

func receive[T any](t testing.TB, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(time.Minute):
		t.Fatal("nothing came within a minute")
	}
	panic("unreachable")
}

func (r *running) tell(o *policy.Objects, err error) {
	r.Helper()
	select {
	case r.updates <- update{o, err}:
	case <-time.After(time.Minute):
		r.Fatal("the agent doesn't listen to its source")
	}
}

func (r *running) get(path string) (string, error) {
	resp, err := http.Get("http://" + healthAddress + path)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

func (r *running) metrics() map[string]float64 {
	r.Helper()
	text, err := r.get("/metrics")
	if err != nil {
		r.Fatal(err)
	}
	values := map[string]float64{}
	for line := range strings.Lines(text) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			if values[line[:i]], err = strconv.ParseFloat(strings.TrimSpace(line[i:]), 64); err != nil {
				r.Fatal(err)
			}
		}
	}
	return values
}

// wantMetrics waits until the metrics have these values. -1 means that there must be no such metric.
func (r *running) wantMetrics(want map[string]float64) {
	r.Helper()
	r.eventually("metrics", func() error {
		got := r.metrics()
		var errs []error
		for name, v := range want {
			if have, ok := got[name]; ok != (v >= 0) || (ok && have != v) {
				errs = append(errs, fmt.Errorf("%s is %v (%v), want %v", name, have, ok, v))
			}
		}
		return errors.Join(errs...)
	})
}

func (r *running) rounds() {
	r.Helper()
	const syncs = "weir_sync_duration_seconds_count"
	before := r.metrics()[syncs]
	r.eventually("the agent goes round", func() error {
		if now := r.metrics()[syncs]; now < before+4 {
			return fmt.Errorf("%v syncs after %v", now, before)
		}
		return nil
	})
}

// pod returns a pod of node peer if the address is in 10.88.1.0/24, and otherwise a pod of node self.
func pod(name, address string) policy.Pod {
	p := policy.Pod{Namespace: "shop", Name: name, NodeName: "self"}
	if address != "" {
		p.Addresses = []netip.Addr{netip.MustParseAddr(address)}
	}
	if strings.HasPrefix(address, "10.88.1.") {
		p.NodeName = "peer"
	}
	return p
}

func node(name, address string, cidrs ...string) policy.Node {
	n := policy.Node{Name: name}
	if address != "" {
		n.Addresses = []netip.Addr{netip.MustParseAddr(address)}
	}
	for _, c := range cidrs {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
	}
	return n
}

func (r *running) attach(name, address string) string {
	r.Helper()
	return r.attachUID(name, "", address)
}

func (r *running) attachUID(name, uid, address string) string {
	r.Helper()
	e := endpoint.Endpoint{
		ContainerID: "shop." + name + uid,
		IfName:      "eth0",
		Enforcement: conf.Strict,
		HostIf:      "weir" + name,
		MAC:         "0a:58:0a:58:00:02",
		Pod:         endpoint.Pod{Namespace: "shop", Name: name, UID: uid},
		Addresses: []endpoint.Address{{
			Addr:    netip.MustParseAddr(address),
			Subnet:  netip.MustParsePrefix("10.88.0.0/24"),
			Gateway: netip.MustParseAddr("10.88.0.1"),
		}},
	}
	making, err := e.Begin() // without a running ADD, the pod would count as ended, because it has no link
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = making.Close() })
	return e.ID()
}

func (r *running) enrol(id string) (agentapi.EnrolAnswer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return agentapi.Enrol(ctx, id)()
}

func fetchStatus() (*agentapi.Status, error) {
	question, err := agentapi.Ask(context.Background(), "GET", agentapi.StatusPath, nil)
	if err != nil {
		return nil, err
	}
	_, answer, err := question.Answer()
	if err != nil {
		return nil, err
	}
	s := &agentapi.Status{}
	return s, json.Unmarshal(answer, s)
}
