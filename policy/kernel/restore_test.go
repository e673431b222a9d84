package kernel

import (
	"strings"
	"testing"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/test/nodetest"
)

// TestRestorers: one that waits keeps nobody from the tables; one that somebody has killed is replaced; what goes wrong is
// said with the program's own words; one of the flavour that
// the node has left isn't used.
func TestRestorers(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	d := driver(t, NFT)
	for _, f := range []Flavour{NFT, Legacy} { // the second time a program of the first flavour waits
		d.Flavour = f
		chain := func(name string) error {
			return d.restoreFamily(t.Context(), conf.IPv4, "*mangle\n:"+name+" - [0:0]\nCOMMIT\n")
		}
		if err := chain("WEIR-A"); err != nil {
			t.Fatal(err)
		}
		waiting := d.ahead[conf.IPv4]
		if !waiting.waits(f) {
			t.Fatal("no program was started ahead")
		}
		nodetest.Run(t, "iptables-"+string(f), "-w", "1", "-t", "mangle", "-N", "SOMEBODY")
		if err := chain("WEIR-B"); err != nil {
			t.Fatal(err)
		}
		killed := d.ahead[conf.IPv4]
		if err := killed.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-killed.ended
		if err := chain("WEIR-C"); err != nil {
			t.Fatalf("after the waiting program was killed: %v", err)
		}
		if err := d.restoreFamily(t.Context(), conf.IPv4, "*mangle\n-A NOBODY -j DROP\nCOMMIT\n"); err == nil || !strings.Contains(err.Error(), "NOBODY") {
			t.Errorf("a chain that isn't there: %v", err)
		}
		have := nodetest.Run(t, "iptables-"+string(f)+"-save", "-t", "mangle")
		for _, want := range []string{"WEIR-A", "WEIR-B", "WEIR-C", "SOMEBODY"} {
			if !strings.Contains(have, ":"+want+" ") {
				t.Errorf("iptables-%s: no chain %s in\n%s", f, want, have)
			}
		}
	}
}
