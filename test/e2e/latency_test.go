//go:build e2e && latency

package e2e_test

import (
	"slices"
	"testing"
	"time"
)

// TestPolicyLatency measures the time from the creation or deletion of a policy to its first effect on connections
// between two nodes. The median may be at most 20 ms, and the worst case 100 ms.
func TestPolicyLatency(t *testing.T) {
	const times = 20
	ns := namespace(t, "latency")
	a, _, remote := apart(t)
	start(t, listener(ns, "server", remote))
	api := newAPI(t)
	// This pod connects by itself, because kubectl exec would load the API server.
	start(t, pod{
		Namespace: ns, Name: "client", Node: a.name, Labels: "app: client", Image: probe, Once: true,
		Command: `[probe, connect, --every=2ms, --timeout=300ms, --for=40s, "` + podIP(t, ns, "server") + `:9000"]`,
	})
	type change struct {
		at       time.Time
		open     bool
		answered time.Duration // until the API server's answer
	}
	var changes []change
	for range times {
		for _, open := range []bool{false, true} {
			time.Sleep(700 * time.Millisecond) // some attempts to connect must begin before the next change
			began := time.Now()
			if open {
				api.send("DELETE", "/apis/networking.k8s.io/v1/namespaces/"+ns+"/networkpolicies/deny", "")
			} else {
				api.send("POST", "/apis/networking.k8s.io/v1/namespaces/"+ns+"/networkpolicies",
					`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"deny"},
					"spec":{"podSelector":{}}}`)
			}
			changes = append(changes, change{began, open, time.Since(began)})
		}
	}
	time.Sleep(700 * time.Millisecond)
	kubectl(t, "-n", ns, "wait", "pod/client", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
	all := attempts(t, kubectl(t, "-n", ns, "logs", "client"))
	for _, open := range []bool{false, true} {
		var took, answered []time.Duration
		for _, c := range changes {
			if c.open != open {
				continue
			}
			i := slices.IndexFunc(all, func(a attempt) bool { return a.Start.After(c.at) && a.OK == open })
			if i < 0 {
				t.Fatalf("no connection after the change at %v was evaluated by it", c.at)
			}
			took, answered = append(took, all[i].Start.Sub(c.at)), append(answered, c.answered)
		}
		slices.Sort(took)
		slices.Sort(answered)
		median, worst := took[len(took)/2], took[len(took)-1]
		t.Logf("from the policy's %s: median %.1f ms, worst of %d %.1f ms; the API server's own answer: median %.1f ms",
			map[bool]string{false: "creation to the first refused connection", true: "deletion to the first accepted one"}[open],
			median.Seconds()*1000, times, worst.Seconds()*1000, answered[times/2].Seconds()*1000)
		if median > 20*time.Millisecond || worst > 100*time.Millisecond {
			t.Fail()
		}
	}
}
