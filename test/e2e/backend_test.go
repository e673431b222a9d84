//go:build e2e

package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestBackend: agents use nftables if kube-proxy does, and otherwise iptables.
func TestBackend(t *testing.T) {
	for _, n := range workers(t) {
		want := ", iptables-"
		if strings.Contains(enter(t, n.name, "nft", "list", "tables"), " kube-proxy") {
			want = ", nftables"
		}
		eventually(t, 2*time.Minute, n.name+" uses "+want, func() error {
			out, err := run(t.Context(), "", scripts+"enter", n.name, "weirctl", "status")
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("%s", out)
			}
			return err
		})
	}
}
