package agent

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

// TestManyProblemsAreReportedSeldom: if many problems change all the time, they are reported once a second.
func TestManyProblemsAreReportedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := func(n int) (all []ruleset.Problem) {
			for i := range n {
				all = append(all, ruleset.Problem{Object: fmt.Sprint("NetworkPolicy a/", i), Message: "no room"})
			}
			return all
		}
		var said bytes.Buffer
		log := slog.New(slog.NewTextHandler(&said, nil))
		time.Sleep(time.Hour)
		var p problems
		reports := 0
		for i := range 100 { // the calls are 50 ms apart
			before := len(p.all)
			wait := p.report(log, list(2*many+i), nil)
			if len(p.all) != before {
				reports++
			} else if wait <= 0 || wait > manyEvery {
				t.Errorf("call %d reports nothing, and is to be repeated in %v", i, wait)
			}
			time.Sleep(50 * time.Millisecond)
		}
		if reports < 4 || reports > 6 {
			t.Errorf("%d reports in 5 s", reports)
		}
		last := list(3 * many)
		time.Sleep(p.report(log, last, nil))
		if p.report(log, last, nil); len(p.all) != len(last) {
			t.Errorf("in the end %d of %d problems are reported", len(p.all), len(last))
		}
		if n := testing.AllocsPerRun(10, func() { p.report(log, last, nil) }); n > 0 {
			t.Errorf("the same problems take %.0f allocations", n)
		}
		others := []ruleset.Problem{{Object: "Node n", Field: "spec.podCIDRs", Message: "overlap"}}
		time.Sleep(manyEvery)
		if p.report(log, last, others); !strings.Contains(said.String(), "Node n") {
			t.Error("a problem of another object isn't reported")
		}
	})
}

// TestManyProblemsAreHeld: while many problems are reported, an event of an object that has a problem causes no
// reconcile. A later report has the changed problem. A problem of a policy is reported at once.
func TestManyProblemsAreHeld(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a := newConflistAgent(t)
	var pods []policy.Pod
	for i := range many + 1 {
		p := pod(fmt.Sprint("p", i), "10.99.0.1")
		p.NodeName = "none"
		pods = append(pods, p)
	}
	a.takeUpdate(policy.Difference(policy.Objects{}, policy.Objects{Pods: pods}), nil)
	report := func() {
		a.problems.report(a.Log, a.present().ruleset.Problems, nil)
		a.present()
	}
	report()
	if n := len(a.problems.all); n <= many {
		t.Fatalf("there are %d problems", n)
	}
	changed := policy.NewDelta()
	p := pods[0]
	p.NodeName = "another"
	changed.Pods[policy.Name{Namespace: p.Namespace, Name: p.Name}] = []*policy.Pod{&p}
	if w := a.takeUpdate(changed, nil); w.reconcile {
		t.Error("a changed problem causes a reconcile")
	}
	named := func() bool {
		other := func(p ruleset.Problem) bool { return strings.Contains(p.Message, "another") }
		return slices.ContainsFunc(a.problems.all, other)
	}
	if report(); named() {
		t.Error("the problem is listed at once")
	}
	a.problems.made, a.problems.listed = time.Now().Add(-keptFor), time.Now().Add(-keptFor)
	a.problems.report(a.Log, a.problems.compiled, []ruleset.Problem{{Object: "Node none"}})
	// The report above had a new problem only in the list of other problems. So it has set the field made, but not the
	// field listed, and a new list of the objects' problems is still due.
	a.problems.made = time.Now().Add(-manyEvery)
	if report(); !named() {
		t.Error("the problem isn't listed")
	}
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "elsewhere", Name: "bad"}}
	np.Spec.PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "app", Operator: "unknown"}}
	bad := policy.NewDelta()
	bad.Policies[policy.Name{Namespace: "elsewhere", Name: "bad"}] = []*networkingv1.NetworkPolicy{np}
	if w := a.takeUpdate(bad, nil); !w.reconcile {
		t.Error("a problem of a policy waits")
	}
	a.problems.made = time.Now().Add(-manyEvery)
	report()
	ofPolicy := func(p ruleset.Problem) bool { name, ok := p.Policy(); return ok && name == "elsewhere/bad" }
	if !slices.ContainsFunc(a.problems.all, ofPolicy) {
		t.Error("the problem of a policy isn't listed at once")
	}
}

func TestMisplacedPodsHaveOneOrder(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	a := newConflistAgent(t)
	const pods = 20
	for i := range pods {
		e := endpoint.Endpoint{
			ContainerID: fmt.Sprint(i), IfName: "eth0", Pod: endpoint.Pod{Namespace: "shop", Name: fmt.Sprint("p", i)},
			Addresses: []endpoint.Address{{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}},
		}
		a.records.endpoints[e.ID()] = e
	}
	if all := a.misplacedPods(); len(all) != pods || !slices.IsSortedFunc(all, compareProblems) {
		t.Errorf("%v", all)
	}
}
