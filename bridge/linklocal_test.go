package bridge

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

var linkLocalPorts = regexp.MustCompile(`elements = \{ ([^}]*) \}`)

// TestKeepLinkLocal: KeepLinkLocal gives the table the wanted ports, and returns the ports that the table lacked. It
// keeps the table's other ports only if keep is true. A second call finds nothing to do.
func TestKeepLinkLocal(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	nodetest.RunEach(t,
		"ip link add port1 type bridge", "ip link add port2 type bridge", "ip link add port3 type bridge")
	index := func(name string) uint32 {
		i, err := indexOf(name)
		if i == 0 || err != nil {
			t.Fatalf("index of %s: %d, %v", name, i, err)
		}
		return uint32(i)
	}
	a, b, c := index("port1"), index("port2"), index("port3")
	const between = "chain bridge weir-link-local between"
	for i, step := range []struct {
		command string // a command of nft that runs before the step
		want    []uint32
		keep    bool
		lacked  []uint32
		damaged bool
		ports   string // the set "ports" after the step, as nft lists it; "" if there is no table
	}{
		{},
		{want: []uint32{a, b}, lacked: []uint32{a, b}, damaged: true, ports: `"port1", "port2"`},
		{want: []uint32{b}, keep: true, ports: `"port1", "port2"`},
		{want: []uint32{b, c}, lacked: []uint32{c}, ports: `"port2", "port3"`},
		{command: "flush " + between, want: []uint32{b, c}, damaged: true, ports: `"port2", "port3"`},
		{
			command: "delete element bridge weir-link-local ports { port2 }", want: []uint32{b, c}, lacked: []uint32{b},
			ports: `"port2", "port3"`,
		},
		{keep: true, ports: `"port2", "port3"`},
		{},
	} {
		if step.command != "" {
			nodetest.Run(t, "nft", step.command)
		}
		lacked, damaged, err := KeepLinkLocal(step.want, step.keep)
		if !slices.Equal(lacked, step.lacked) || damaged != step.damaged || err != nil {
			t.Errorf("step %d: lacked %v, damaged %v, %v", i, lacked, damaged, err)
		}
		if lacked, damaged, err := KeepLinkLocal(step.want, step.keep); len(lacked) > 0 || damaged || err != nil {
			t.Errorf("step %d again: lacked %v, damaged %v, %v", i, lacked, damaged, err)
		}
		out, err := nodetest.Try("nft", "list", "set", "bridge", "weir-link-local", "ports")
		found := linkLocalPorts.FindStringSubmatch(strings.Join(strings.Fields(out), " "))
		if step.ports == "" && err == nil || step.ports != "" && (found == nil || found[1] != step.ports) {
			t.Errorf("step %d: want %s:\n%s", i, step.ports, out)
		}
	}
	for range 2 { // the second call finds the table
		if err := AddLinkLocalPorts([]uint32{a}); err != nil {
			t.Fatal(err)
		}
	}
	if lacked, damaged, err := KeepLinkLocal([]uint32{a}, false); len(lacked) > 0 || damaged || err != nil {
		t.Errorf("after AddLinkLocalPorts: lacked %v, damaged %v, %v", lacked, damaged, err)
	}
	if err := RemoveGuard(); err != nil {
		t.Fatal(err)
	}
	if out := nodetest.Run(t, "nft", "list", "tables"); strings.Contains(out, "weir") {
		t.Errorf("after RemoveGuard:\n%s", out)
	}
}
