package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/ipam"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

type stepped struct {
	*running
	*agent
	sets *ipset.Handle
	last policy.Objects
}

func (s *stepped) know(objects *policy.Objects) {
	s.takeUpdate(policy.Difference(s.last, *objects), nil)
	s.last = *objects
}

func step(t *testing.T, objects *policy.Objects) *stepped {
	t.Helper()
	driver, err := iptables.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	links, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	sets, err := ipset.New()
	if err != nil {
		t.Fatal(err)
	}
	a := newAgent(Options{Source: newCluster(), Log: slog.New(slog.DiscardHandler)}, driver, links)
	a.cutting.shortest = 0
	s := &stepped{&running{T: t}, a, sets, policy.Objects{}}
	s.know(objects)
	return s
}

func stepWeb(t *testing.T) *stepped {
	t.Helper()
	s := step(t, healthy())
	s.attach("web", "10.88.0.2")
	s.hear(netfilter.All)
	return s
}

func (s *stepped) hear(verify netfilter.Verify) {
	s.Helper()
	s.takeRecords(dirwatch.Change{Lost: true})
	s.reconcile(s.Context(), verify)
	for s.cutting.walking {
		w := receive(s.T, s.cutting.results)
		w.took = 0 // so that the next walk may begin at once
		s.takeWalk(w)
	}
	if err := s.faults.now[partKernel]; err != nil {
		s.Fatal(err)
	}
}

// add attaches and enrols a pod. The agent gets no event about the new record before the request to enrol.
func (s *stepped) add(name, uid, address string) {
	s.Helper()
	id := s.attachUID(name, uid, address)
	pod := ipset.Entry{Prefix: netip.MustParsePrefix(address + "/32"), Comment: "shop/" + name}
	if err := ipset.Apply(ipset.Change{Set: conf.PodsSet, Entry: pod}); err != nil {
		s.Fatal(err)
	}
	e := &enrolment{ctx: s.Context(), id: id, deadline: time.Now().Add(time.Minute), answer: make(chan answer, 1)}
	s.takeEnrolment(e)
	s.reconcile(s.Context(), netfilter.Rules)
	if r := receive(s.T, e.answer); r.Error != "" {
		s.Errorf("the answer for %s is %+v", id, r)
	}
}

// del removes the pod as the plugin does. The agent doesn't get the event.
func (s *stepped) del(name, uid, address string) {
	s.Helper()
	id := endpoint.ID("shop."+name+uid, "eth0")
	if _, err := endpoint.MarkEnding(id); err != nil {
		s.Fatal(err)
	}
	if err := s.sets.Purge(netip.MustParseAddr(address)); err != nil {
		s.Fatal(err)
	}
	if err := endpoint.Remove(id); err != nil {
		s.Fatal(err)
	}
}

func (s *stepped) in(address string) []string {
	s.Helper()
	headers, err := s.sets.Headers()
	if err != nil {
		s.Fatal(err)
	}
	var in []string
	for _, h := range headers {
		set, err := s.sets.List(h.Name)
		if err != nil {
			s.Fatal(err)
		}
		for _, e := range set.Entries {
			if e.Prefix.Addr() == netip.MustParseAddr(address) && e.Prefix.IsSingleIP() {
				in = append(in, h.Name[:len("weir-xx")]+" "+e.Comment)
			}
		}
	}
	slices.Sort(in)
	return in
}

// TestFault7AnAddressWhoseOldRecordWasNotHeardOf: if a new pod gets an old pod's address, it gets none of the old
// pod's rights. weave-npc had this fault.
func TestFault7AnAddressWhoseOldRecordWasNotHeardOf(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	o := shop(named("db-0", "1", "old"), named("evil", "2", "other"), named("web", "", "web"))
	o.Policies = append(o.Policies, healthy().Policies...)
	o.Policies[2].Spec.PodSelector.MatchLabels = map[string]string{"app": "web"}
	o.Policies[2].Spec.Ingress[0].From[0].PodSelector.MatchLabels["app"] = "old"
	s := step(t, o)
	s.hear(netfilter.All)
	s.add("web", "", "10.88.0.2")
	s.add("db-0", "1", "10.88.0.9")
	if got, want := s.in("10.88.0.9"), []string{
		"weir-eg shop/db-0", "weir-in shop/db-0", "weir-po shop/db-0",
		"weir-se shop/db-0",
	}; !slices.Equal(got, want) {
		t.Fatalf("the first pod is in %q, want %q", got, want)
	}
	s.del("db-0", "1", "10.88.0.9")
	s.reconcile(t.Context(), netfilter.Trust) // the agent handles another event
	s.add("evil", "2", "10.88.0.9")
	want := []string{"weir-eg shop/evil", "weir-in shop/evil", "weir-po shop/evil"}
	if got := s.in("10.88.0.9"); !slices.Equal(got, want) {
		t.Errorf("the second pod is in %q, want %q", got, want)
	}
	if class := s.snapshots.enforced.Load().class(ruleset.Ingress, "shop/evil"); class != agentapi.ClassOpen {
		t.Errorf("the second pod is in class %s", class)
	}
	s.hear(netfilter.All)
	if got := s.in("10.88.0.9"); !slices.Equal(got, want) {
		t.Errorf("after the kernel was read, the second pod is in %q, want %q", got, want)
	}
	// Two records on disk have the same address, and the address is assigned to neither attachment. So the later record
	// counts.
	s.attachUID("db-0", "1", "10.88.0.9")
	e, err := endpoint.Load(endpoint.ID("shop.evil2", "eth0"))
	if err != nil {
		t.Fatal(err)
	}
	e.Created = time.Now()
	if err := e.Save(); err != nil {
		t.Fatal(err)
	}
	s.hear(netfilter.All)
	if got := s.in("10.88.0.9"); !slices.Equal(got, want) {
		t.Errorf("with both records, the second pod is in %q, want %q", got, want)
	}
	if s.faults.now[partRecords] == nil {
		t.Error("that two have one address is not reported")
	}
}

// TestAnAddressOfTwoRecords: if two records have the same address, only the record of the attachment to which the
// address is assigned counts, even if the other record was read later, or seems newer because the clock was set back.
func TestAnAddressOfTwoRecords(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	const address = "10.88.0.9"
	s := step(t, shop(named("off", "1", "old"), named("strict", "2", "other")))
	s.hear(netfilter.All)
	saved := func(name, uid string, created time.Time, enforcement conf.Enforcement) string {
		t.Helper()
		e, err := endpoint.Load(s.attachUID(name, uid, address))
		if err != nil {
			t.Fatal(err)
		}
		e.Created, e.Enforcement, e.Chained, e.HostIf = created, enforcement, true, ""
		if err := errors.Join(e.Save(), ipam.AssignExternal(e.ID(), netip.MustParseAddr(address))); err != nil {
			t.Fatal(err)
		}
		return e.ID()
	}
	off := saved("off", "1", time.Now().Add(time.Hour), conf.Off)
	s.hear(netfilter.All)
	strict := saved("strict", "2", time.Now(), conf.Strict) // weir has missed the DEL of the other pod
	for _, c := range []struct {
		change dirwatch.Change
		when   string
	}{
		{dirwatch.Change{Lost: true}, "after all were read"},
		{dirwatch.Change{Names: []string{strict + ".json"}}, "after the new record was read"},
		{dirwatch.Change{Names: []string{off + ".json"}}, "after the old record was read"},
	} {
		s.takeRecords(c.change)
		s.reconcile(t.Context(), netfilter.Trust)
		for _, in := range s.in(address) {
			if !strings.HasSuffix(in, " shop/strict") {
				t.Errorf("%s, the address is in %q", c.when, in)
			}
		}
		if err := s.faults.now[partRecords]; err == nil || !strings.Contains(err.Error(), off) {
			t.Errorf("%s, the fault is %v", c.when, err)
		}
	}
}

// TestAPodThatComesAgain: if a new pod has the name and address of an ended pod, the agent restores the entries of sets
// that DEL removed.
func TestAPodThatComesAgain(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	db := named("db-0", "", "old")
	db.Ports = []policy.NamedPort{{Name: "sql", Proto: ruleset.TCP, Number: 5432}}
	o := shop(db)
	port := intstr.FromString("sql")
	o.Policies[0].Spec.Ingress[0] = networkingv1.NetworkPolicyIngressRule{
		Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
		From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}},
	}
	s := step(t, o)
	s.hear(netfilter.All)
	s.add("db-0", "", "10.88.0.9")
	want := s.in("10.88.0.9")
	if len(want) != 5 {
		t.Fatalf("the pod is in %q", want)
	}
	for range 2 {
		s.del("db-0", "", "10.88.0.9")
		s.add("db-0", "", "10.88.0.9")
		if got := s.in("10.88.0.9"); !slices.Equal(got, want) {
			t.Errorf("when it came again, the pod is in %q, want %q", got, want)
		}
	}
	if s.stats.Repairs != 0 {
		t.Errorf("%d repairs", s.stats.Repairs)
	}
}

// TestRecordsThatAreNotRead: if the records can't be listed, the pods' addresses stay in the kernel's sets.
func TestRecordsThatAreNotRead(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	s := stepWeb(t)
	before := s.in("10.88.0.2")
	if len(before) != 3 {
		t.Fatalf("the pod is in %q", before)
	}
	wantSame := func(when string) {
		t.Helper()
		if got := s.in("10.88.0.2"); !slices.Equal(got, before) {
			t.Errorf("%s, the pod is in %q, want %q", when, got, before)
		}
	}
	s = step(t, healthy())
	s.reconcile(t.Context(), netfilter.All)
	wantSame("before the next agent has read the records")
	s.hear(netfilter.All)
	wantSame("once it has")
	dir := "/run/weir/endpoints"
	for _, command := range []string{"mv " + dir + " /run/away", "touch " + dir} {
		nodetest.Run(t, "sh", "-c", command)
	}
	s.takeRecords(dirwatch.Change{Lost: true})
	s.reconcile(t.Context(), netfilter.Trust)
	wantSame("when the directory can't be listed")
	if s.faults.now[partRecords] == nil {
		t.Error("and nothing is said of it")
	}
	nodetest.Run(t, "sh", "-c", "rm "+dir+"; mv /run/away "+dir)
	s.attach("client", "10.88.0.3") // the agent gets no event of this record
	s.retryRecords()
	s.reconcile(t.Context(), netfilter.All)
	wantSame("when it can be again")
	if s.faults.now[partRecords] != nil || len(s.in("10.88.0.3")) == 0 {
		t.Errorf("%v; the new pod is in %q", s.faults.now[partRecords], s.in("10.88.0.3"))
	}
}

// TestSetsThatAnAddChanges: if a running ADD takes its pod out of the sets, the agent puts the pod into the sets again,
// and counts no repair. If another program does so after the ADD has ended, the agent counts a repair.
func TestSetsThatAnAddChanges(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	s := stepWeb(t)
	const address = "10.88.0.9"
	purge := func() {
		t.Helper()
		if err := s.sets.Purge(netip.MustParseAddr(address)); err != nil {
			t.Fatal(err)
		}
		s.hear(netfilter.All)
		if len(s.in(address)) == 0 {
			t.Error("the agent hasn't put the pod into the sets again")
		}
	}
	s.attach("db", address)
	s.hear(netfilter.All) // reads the new record, and puts the pod into the sets
	purge()
	if s.stats.Repairs != 0 {
		t.Errorf("%d repairs while the ADD runs", s.stats.Repairs)
	}
	for id := range s.records.endpoints {
		s.enrolments.done[id] = true
	}
	s.hear(netfilter.All)
	purge()
	if s.stats.Repairs != 1 {
		t.Errorf("%d repairs after the ADD has ended, want 1", s.stats.Repairs)
	}
}

// TestMoveWhileTheNodeIsLocked: while another process has the node's lock, a move removes nothing of the other backend,
// but changes still reach the kernel.
func TestMoveWhileTheNodeIsLocked(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	s := stepWeb(t)
	unlock, err := endpoint.Lock()
	if err != nil {
		t.Fatal(err)
	}
	s.moving.both, s.moving.others = true, 2
	s.attach("db", "10.88.0.9")
	s.hear(netfilter.All)
	if len(s.in("10.88.0.9")) == 0 {
		t.Error("the new pod is in no set")
	}
	if s.faults.now[partLeftovers] == nil || s.moving.others != 2 {
		t.Errorf("fault %v, %d removals are due", s.faults.now[partLeftovers], s.moving.others)
	}
	unlock()
	s.hear(netfilter.All)
	if err := s.faults.now[partLeftovers]; err != nil || s.moving.others != 1 {
		t.Errorf("once the node is unlocked: fault %v, %d removals are due", err, s.moving.others)
	}
}
