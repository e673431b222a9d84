package agent

import (
	"testing"
	"testing/synctest"

	"github.com/weir-net/weir/netfilter/iptables"
)

// TestTakeTakesAllThatWaits, so that one look at the kernel is enough, and the closest that any of them asks for.
func TestTakeTakesAllThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &agent{events: make(chan event)}
		taken := 0
		for i := range 10 {
			go a.hand(t.Context(), func() iptables.Verify {
				taken++
				return []iptables.Verify{iptables.Trust, iptables.Rules}[i/9]
			})
		}
		synctest.Wait()
		if verify := a.take(<-a.events); taken != 10 || verify != iptables.Rules {
			t.Errorf("%d of 10 events were taken, and the kernel is to be read as %v says", taken, verify)
		}
	})
}
