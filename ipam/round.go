package ipam

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go4.org/netipx"

	"github.com/weir-net/weir/conf"
)

// run is a row of addresses that may be given out.
type run struct {
	netipx.IPRange
	subnet  netip.Prefix
	gateway netip.Addr
}

// runs are the rows of all ranges, in the ranges' order.
func runs(ranges []conf.Range) []run {
	var all []run
	for _, r := range ranges {
		for _, row := range r.Runs() {
			all = append(all, run{row, r.Subnet, r.Gateway})
		}
	}
	return all
}

// turned are the rows from the address after last round to last, each address once. One that is in no row, because the
// ranges have changed since, turns nothing.
func turned(rows []run, last netip.Addr) []run {
	i := slices.IndexFunc(rows, func(r run) bool { return r.Contains(last) })
	if i < 0 {
		return rows
	}
	before, behind := rows[i], rows[i]
	before.IPRange = netipx.IPRangeFrom(before.From(), last)
	all := slices.Concat(rows[i+1:], rows[:i], []run{before})
	if last == behind.To() {
		return all
	}
	behind.IPRange = netipx.IPRangeFrom(last.Next(), behind.To())
	return slices.Concat([]run{behind}, all)
}

func lastPath(ranges []conf.Range) string {
	return filepath.Join(lastDir, strings.ReplaceAll(ranges[0].Subnet.String(), "/", "_"))
}

// note keeps the address in a symbolic link too: a file could be empty after a crash of the machine.
func note(path string, addr netip.Addr) error {
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(addr.String(), tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// last is the address that was given out last, or no address: losing it costs the round robin, nothing else.
func last(ranges []conf.Range) netip.Addr {
	target, err := os.Readlink(lastPath(ranges))
	if err != nil {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(target)
	if err != nil {
		return netip.Addr{}
	}
	return addr.WithZone("") // or all that follow it would be in that zone
}
