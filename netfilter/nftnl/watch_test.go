package nftnl

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/test/nodetest"
)

// TestFailedWatch: if Watch fails, it closes its socket.
func TestFailedWatch(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	watch := func() error {
		return Watch(t.Context(), func(Change) bool { return false }, func(uint32, bool) {})
	}
	if err := nodetest.FailedWatch(t, unix.NETLINK_NETFILTER, watch); err == nil {
		t.Error("the watch has ended without an error")
	}
}
