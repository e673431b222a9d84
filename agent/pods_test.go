package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/test/nodetest"
)

type server struct {
	*cluster
	pods      map[string]policy.Pod // the pods that Lookup finds, by namespace/name
	asked     chan string           // the pods that Lookup was called for
	answers   chan struct{}         // Lookup answers once this channel is closed
	published chan map[endpoint.Pod][]netip.Addr
	awaited   chan endpoint.Pod
}

func newServer(pods ...policy.Pod) *server {
	s := &server{
		cluster:   newCluster(),
		pods:      map[string]policy.Pod{},
		asked:     make(chan string, 100),
		answers:   make(chan struct{}),
		published: make(chan map[endpoint.Pod][]netip.Addr, 100),
		awaited:   make(chan endpoint.Pod, 100),
	}
	close(s.answers)
	for _, p := range pods {
		s.pods[p.Namespace+"/"+p.Name] = p
	}
	return s
}

func (s *server) Lookup(_ context.Context, p endpoint.Pod) (policy.Pod, bool, error) {
	s.asked <- p.String()
	<-s.answers
	pod, ok := s.pods[p.String()]
	return pod, ok, nil
}

func (s *server) Publish(_ context.Context, pods map[endpoint.Pod][]netip.Addr) { s.published <- pods }

// AwaitPublished never returns by itself, as if the API server didn't answer.
func (s *server) AwaitPublished(ctx context.Context, p endpoint.Pod) {
	s.awaited <- p
	<-ctx.Done()
}

// TestEnrolWaitsUntilPublished: if the publication of a pod's addresses doesn't end, the pod's enrolment waits only a
// limited time.
func TestEnrolWaitsUntilPublished(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	api := newServer()
	r := startWith(t, api.cluster, Options{Source: api, Resync: time.Hour, EnrolWait: time.Minute})
	r.tell(shop(named("a", "1", "new"), named("b", "", "new")), nil)
	for _, id := range []string{r.attachUID("a", "1", "10.88.0.9"), r.attachUID("b", "", "10.88.0.10")} {
		if v, err := r.enrol(id); err != nil || v.Ingress != "shop/new" {
			t.Errorf("the answer for %s is %+v, %v", id, v, err)
		}
	}
	if got := receive(t, api.awaited); got != (endpoint.Pod{Namespace: "shop", Name: "a", UID: "1"}) {
		t.Errorf("waited for %+v", got)
	}
	select {
	case got := <-api.awaited:
		t.Errorf("waited for %+v too", got)
	default:
	}
}

func (s *server) wantPublished(t *testing.T, want map[string]string) {
	t.Helper()
	select {
	case got := <-s.published:
		have := map[string]string{}
		for p, addrs := range got {
			have[p.String()] = fmt.Sprint(addrs)
		}
		if !maps.Equal(have, want) {
			t.Errorf("other nodes are told %v, want %v", have, want)
		}
	case <-time.After(time.Minute):
		t.Errorf("nothing was published within a minute, want %v", want)
	}
}

// TestEnrolWithTheAPI: if the source hasn't reported a pod, the agent looks it up. The addresses of enrolled pods are
// published until the pods end.
func TestEnrolWithTheAPI(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	api := newServer(pod("new", "10.88.0.9"))
	r := startWith(t, api.cluster, Options{Source: api, Resync: 50 * time.Millisecond, EnrolWait: time.Minute})
	o := healthy()
	o.Pods = append(o.Pods, pod("more", ""))
	r.tell(o, nil)
	r.attach("more", "10.88.0.10") // the ADD of this pod is running, and hasn't asked to enrol the pod yet
	web := r.attach("web", "10.88.0.2")
	if v, err := r.enrol(web); err != nil || v.Ingress != "shop/web" {
		t.Errorf("the answer for web is %+v, %v", v, err)
	}
	api.wantPublished(t, map[string]string{"shop/web": "[10.88.0.2]"})
	if v, err := r.enrol(r.attach("new", "10.88.0.9")); err != nil || v.Ingress != "shop/web" {
		t.Errorf("the answer for new is %+v, %v", v, err)
	}
	api.wantPublished(t, map[string]string{"shop/web": "[10.88.0.2]", "shop/new": "[10.88.0.9]"})
	if err := endpoint.Remove(web); err != nil {
		t.Fatal(err)
	}
	api.wantPublished(t, map[string]string{"shop/new": "[10.88.0.9]"})
	r.rounds()
	select {
	case again := <-api.published:
		t.Errorf("published again: %v", again)
	default:
	}
}

func named(name, uid, app string) policy.Pod {
	return policy.Pod{Namespace: "shop", Name: name, UID: uid, Labels: map[string]string{"app": app}}
}

func shop(pods ...policy.Pod) *policy.Objects {
	o := &policy.Objects{Namespaces: []policy.Namespace{{Name: "shop"}}, Pods: pods, Nodes: healthy().Nodes}
	for _, app := range []string{"old", "new"} {
		o.Policies = append(o.Policies, allow(app, &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}))
	}
	return o
}

func (r *running) wantClass(name, want string) {
	r.Helper()
	check := func() error {
		s, err := fetchStatus()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(s.Pods, func(p agentapi.PodStatus) bool { return p.Pod == "shop/"+name })
		if i < 0 || s.Pods[i].Ingress != want {
			return fmt.Errorf("%s is not in class %s: %+v", name, want, s.Pods)
		}
		return nil
	}
	r.eventually(name+" is in class "+want, check)
	r.rounds()
	if err := check(); err != nil {
		r.Errorf("%v, want %s", err, want)
	}
}

// TestAPodThatWasFoundStays: if the agent has looked up a pod, the pod counts until its endpoint ends, or until the
// source reports this pod or a newer one of the same name.
func TestAPodThatWasFoundStays(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	api := newServer(named("db-0", "2", "new"))
	r := startWith(t, api.cluster, Options{Source: api, Resync: 50 * time.Millisecond, EnrolWait: time.Minute})
	before := named("db-0", "1", "old")
	r.tell(shop(before), nil)
	// The agent must take this report before the look-up begins. Otherwise the report's pod would be a new namesake, and
	// would end the look-up.
	r.wantMetrics(map[string]float64{"weir_policies": 2})
	id := r.attachUID("db-0", "2", "10.88.0.9")
	if v, err := r.enrol(id); err != nil || v.Ingress != "shop/new" {
		t.Errorf("the answer is %+v, %v", v, err)
	}
	for _, older := range []*policy.Objects{shop(before, pod("other", "10.88.1.9")), shop()} { // older than the look-up
		r.tell(older, nil)
		r.wantClass("db-0", "shop/new")
	}
	r.tell(shop(named("db-0", "2", "old")), nil) // the pod's label has changed since the look-up
	r.wantClass("db-0", "shop/old")
	r.tell(shop(), nil)
	r.wantClass("db-0", agentapi.ClassClosed)

	if _, err := r.enrol(id); err != nil {
		t.Error(err)
	}
	r.wantClass("db-0", "shop/new")
	r.tell(shop(named("db-0", "3", "old")), nil)
	r.wantClass("db-0", agentapi.ClassClosed)

	r.tell(shop(), nil)
	if _, err := r.enrol(id); err != nil {
		t.Error(err)
	}
	delete(api.pods, "shop/db-0")
	if err := endpoint.Remove(id); err != nil {
		t.Fatal(err)
	}
	r.wantMetrics(map[string]float64{`weir_set_entries{kind="weir-pods"}`: 0})
	r.attachUID("db-0", "2", "10.88.0.9")
	r.wantClass("db-0", agentapi.ClassClosed)
}

// TestLookupAfterTheFirstReport: if a pod comes before the source's first report and isn't in it, the agent looks the
// pod up.
func TestLookupAfterTheFirstReport(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a, _, r := remembering(t)
	api := newServer(named("db-0", "2", "new"))
	a.Source = api
	e := &enrolment{ctx: t.Context(), id: r.attachUID("db-0", "2", "10.88.0.9"), deadline: time.Now().Add(time.Minute)}
	a.takeRecords(dirwatch.Change{Lost: true})
	a.takeEnrolment(e)
	a.takeUpdate(policy.Difference(policy.Objects{}, *shop()), nil)
	if asked := receive(t, api.asked); asked != "shop/db-0" {
		t.Errorf("the agent looked up %s", asked)
	}
	if answer, ok := receive(t, a.events).(podLookedUp); !ok || answer.id != e.id {
		t.Errorf("the answer for %s is %+v", e.id, answer)
	}
	a.takeUpdate(policy.Difference(*shop(), *shop()), nil)
	if len(api.asked) > 0 {
		t.Error("the agent looked up a pod again")
	}
}

// TestALateAnswerIsIgnored: if the source reports a pod before the look-up's answer comes, the report counts.
func TestALateAnswerIsIgnored(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	api := newServer(named("db-0", "2", "old"), named("db-1", "3", "old"))
	api.answers = make(chan struct{})
	r := startWith(t, api.cluster, Options{Source: api, Resync: 50 * time.Millisecond, EnrolWait: time.Minute})
	r.tell(shop(), nil)
	// The agent looks pods up only after it has taken the source's first report, so the test waits for that.
	r.wantMetrics(map[string]float64{"weir_policies": 2})
	id, done := r.attachUID("db-0", "2", "10.88.0.9"), make(chan error, 1)
	go func() {
		_, err := r.enrol(id)
		done <- err
	}()
	receive(t, api.asked)
	r.tell(shop(named("db-0", "2", "new")), nil)
	if err := receive(t, done); err != nil {
		t.Error(err)
	}
	close(api.answers)
	// The agent looks up db-1 only now. So when db-1 is enrolled, the late answer for db-0 has come.
	if _, err := r.enrol(r.attachUID("db-1", "3", "10.88.0.10")); err != nil {
		t.Error(err)
	}
	r.wantClass("db-0", "shop/new")
}
