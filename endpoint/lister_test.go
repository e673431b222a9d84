package endpoint_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/test/nodetest"
)

// TestLister: List shows each change of a record's file, even a change that keeps the file's size.
func TestLister(t *testing.T) {
	if !nodetest.Isolated(t) {
		return
	}
	save := func(container, address string) {
		t.Helper()
		a := netip.MustParseAddr(address)
		e := endpoint.Endpoint{
			ContainerID: container, IfName: "eth0", MAC: "0e:58:0a:58:00:02", Enforcement: conf.Strict,
			Addresses: []endpoint.Address{{Addr: a, Subnet: netip.MustParsePrefix("10.88.0.0/24")}},
		}
		if err := e.Save(); err != nil {
			t.Fatal(err)
		}
	}
	file := func(container string) string {
		return filepath.Join(endpoint.Dir, "endpoints", container+":eth0.json")
	}
	var l endpoint.Lister
	want := func(when string, addresses ...string) {
		t.Helper()
		all, err := l.List()
		var broken endpoint.BrokenRecords
		if err != nil && !errors.As(err, &broken) {
			t.Fatal(err)
		}
		ok := len(all)+len(broken) == len(addresses)
		for i, e := range all {
			ok = ok && e.Addresses[0].Addr.String() == addresses[i]
		}
		if !ok {
			t.Errorf("%s: %v, %v; want %v", when, all, err, addresses)
		}
	}
	old := func(container string, age time.Duration) {
		t.Helper()
		at := time.Now().Add(-age)
		if err := os.Chtimes(file(container), at, at); err != nil {
			t.Fatal(err)
		}
	}
	want("no directory")
	save("a", "10.88.0.2")
	save("b", "10.88.0.3")
	old("a", time.Hour)
	want("two records", "10.88.0.2", "10.88.0.3")
	want("nothing has changed", "10.88.0.2", "10.88.0.3")
	old("b", time.Hour)
	want("another record has another time", "10.88.0.2", "10.88.0.3")
	first, err1 := l.List()
	again, err2 := l.List()
	if err := errors.Join(err1, err2); err != nil || len(first) != 2 || &first[0] != &again[0] {
		t.Errorf("List makes a new list although nothing has changed: %v", err)
	}
	save("a", "10.88.0.4") // Save replaces the file
	want("a record was replaced", "10.88.0.4", "10.88.0.3")
	old("a", time.Hour)
	want("a record has another time", "10.88.0.4", "10.88.0.3")
	write := func(from, to string) {
		t.Helper()
		data, err := os.ReadFile(file("a"))
		if err == nil {
			data = []byte(strings.ReplaceAll(string(data), from, to))
			err = os.WriteFile(file("a"), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write("10.88.0.4", "10.88.0.5")
	want("a record was edited in place", "10.88.0.5", "10.88.0.3")
	write("10.88.0.5", "10.88.0.6")
	want("a record was edited again, within a tick of the clock", "10.88.0.6", "10.88.0.3")
	old("a", time.Hour)
	want("a record has another time", "10.88.0.6", "10.88.0.3")
	write("10.88.0.6", "10.88.0.x")
	want("a record was broken", "10.88.0.3", "broken")
	if err := os.Remove(file("a")); err != nil {
		t.Fatal(err)
	}
	want("a record was removed", "10.88.0.3")
}
