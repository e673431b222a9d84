package blackbox

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

// TestAddsAndDelsAreNobodysTampering: the agent doesn't undo changes of sets that ADD and DEL make during a resync.
func TestAddsAndDelsAreNobodysTampering(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/ptp", "ipam/host-local") {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.ConfigureList(nodetest.Conf{"type": "ptp", "ipam": nodetest.Conf{
		"type": "host-local", "ranges": []any{[]any{nodetest.Conf{"subnet": "10.77.0.0/24"}}},
	}}, nodetest.Conf{"type": "weir"})
	const at, times = 3, 12
	var names []string
	for i := range at {
		names = append(names, fmt.Sprint("p", i))
	}
	n.Manifest("pods.yaml", pods("x", names...))
	n.Manifest("deny.yaml", denyX)
	n.StartAgent()

	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // the kernel reports each of these changes, which makes the agent resync
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			disturbRules()
			time.Sleep(5 * time.Millisecond)
		}
	}()
	var wg sync.WaitGroup
	for _, name := range names {
		netns := nodetest.NewNS(t, "x."+name)
		wg.Go(func() {
			for range times {
				ended, watched := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(watched)
					watchMember(t, "x/"+name, ended)
				}()
				_, err := n.CNI("add", netns, nodetest.Args("x", name, ""))
				if err != nil {
					t.Errorf("add %s: %v", name, err)
				}
				close(ended)
				<-watched
				if _, err := n.CNI("del", netns, nodetest.Args("x", name, "")); err != nil {
					t.Errorf("del %s: %v", name, err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	<-stopped
	if k := strings.Count(n.AgentLog(), "another program"); k > 0 {
		t.Errorf("%d times the agent says that another program changed weir's sets or rules, which none did", k)
	}
	if out, err := podSet(); err != nil || strings.Contains(out, "10.77.0.") {
		t.Errorf("left in the set of all pods: %v\n%s", err, out)
	}
	nodetest.RunEach(t, nodetest.PutInto(nodetest.PodSet, "203.0.113.9"))
	n.Eventually("an address of no pod is taken out", func() error {
		if out, err := podSet(); err != nil || strings.Contains(out, "203.0.113.9") {
			return fmt.Errorf("it is in: %w\n%s", err, out)
		}
		return nil
	})
	n.Eventually("the agent says so", func() error {
		if !strings.Contains(n.AgentLog(), "another program") {
			return fmt.Errorf("%s", n.AgentLog())
		}
		return nil
	})
}

func watchMember(t *testing.T, pod string, ended <-chan struct{}) {
	was := false
	for {
		select {
		case <-ended:
			return
		default:
		}
		out, err := podSet()
		is := strings.Contains(out, `"`+pod+`"`)
		if err == nil && was && !is {
			t.Errorf("pod %s has left the set of all pods while its ADD was on its way", pod)
			return
		}
		was = was || (err == nil && is)
	}
}
