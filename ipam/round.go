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

type run struct {
	netipx.IPRange
	subnet  netip.Prefix
	gateway netip.Addr
}

func runs(ranges []conf.Range) []run {
	var all []run
	for _, r := range ranges {
		for _, row := range r.Runs() {
			all = append(all, run{row, r.Subnet, r.Gateway})
		}
	}
	return all
}

// rotate reorders the addresses of the rows: the result begins with the address behind `last`, and ends with `last`
// itself. For this, rotate may split the row that contains `last`. If no row contains `last`, rotate returns the rows
// unchanged.
func rotate(rows []run, last netip.Addr) []run {
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

// lastPath returns the path of the link whose target is the last assigned address. Lists of ranges with the same
// first subnet share one link.
func lastPath(ranges []conf.Range) string {
	return filepath.Join(lastDir, strings.ReplaceAll(ranges[0].Subnet.String(), "/", "_"))
}

// recordLast stores the address as the target of a symbolic link, because a crash of the machine could lose a file's
// content.
func recordLast(path string, addr netip.Addr) error {
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(addr.String(), tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// lastAssigned returns the last assigned address. It returns the zero Addr if the link can't be read, or if the link's
// target isn't an address.
func lastAssigned(ranges []conf.Range) netip.Addr {
	target, err := os.Readlink(lastPath(ranges))
	if err != nil {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(target)
	if err != nil {
		return netip.Addr{}
	}
	return addr.WithZone("") // Addr.Next would keep the zone
}
