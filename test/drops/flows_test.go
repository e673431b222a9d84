package drops_test

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/test/nodetest"
)

// TestFlowsUnderFlood: while one pod sends a flood of allowed packets, "weirctl flows" still shows another pod's flow.
func TestFlowsUnderFlood(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t)
	quiet, flood := n.sendFrom(n.quiet), n.sendFrom(n.flood)
	flood.to, quiet.to = [4]byte(net.ParseIP(n.quiet.IP).To4()), [4]byte(net.ParseIP(n.flood.IP).To4())
	if _, err := n.Ctl("flows", "--record", "1h"); err != nil {
		t.Fatal(err)
	}
	seen := func() (flows agentapi.Flows) {
		t.Helper()
		text, err := n.Ctl("flows", "-o", "json")
		if err != nil {
			t.Fatal(err)
		}
		var all []agentapi.Flows // only the JSON is decoded: a note may follow
		if err := json.NewDecoder(strings.NewReader(text)).Decode(&all); err != nil || len(all) != 1 {
			t.Fatalf("%v\n%s", err, text)
		}
		return all[0]
	}
	n.Eventually("flows are recorded", func() error {
		if !seen().Recording {
			return fmt.Errorf("they aren't")
		}
		return nil
	})
	c := n.cost()
	end := flood.flood(*rate)
	n.Eventually("the quiet pod's flow shows", func() error {
		if err := quiet.send(7); err != nil {
			return err
		}
		for _, f := range seen().Flows {
			if f.Source.Pod == "shop/quiet" && f.Port == 7 {
				return nil
			}
		}
		return fmt.Errorf("no flow")
	})
	n.Eventually("a flood of some seconds", func() error {
		if time.Since(c.began) < 3*time.Second {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	end()
	c.end()
	if _, err := n.Ctl("flows", "--stop"); err != nil {
		t.Fatal(err)
	}
	n.Eventually("the recording ends", func() error {
		if seen().Recording {
			return fmt.Errorf("it goes on")
		}
		return nil
	})
	f, counted := seen(), uint64(0)
	for _, one := range f.Flows {
		counted += one.Count
	}
	sent := flood.sent.Load()
	t.Logf("flows-flood: %d packets, %.0f a second: %d flows with %d packets, %d packets of no known flow; agent: %s",
		sent, float64(sent)/c.took.Seconds(), len(f.Flows), counted, f.Unknown, c.text(sent))
	if c.tooMuch(sent) {
		t.Errorf("the agent takes too much time: %s", c.text(sent))
	}
	if f.Unknown == 0 {
		t.Error("no packet is unknown: the test shows nothing")
	}
}
