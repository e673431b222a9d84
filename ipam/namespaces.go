package ipam

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// usedAddresses returns the addresses in all network namespaces of the node except the node's own namespace.
//
// Equivalent to: for pid in $(lsns -n -t net -o PID); do nsenter -t $pid -n ip addr; done
//
// These commands list the node's own namespace too. A namespace that is only mounted needs nsenter --net=PATH.
func usedAddresses() (map[netip.Addr]bool, error) {
	paths, err := namespaces()
	if err != nil {
		return nil, err
	}
	used := map[netip.Addr]bool{}
	for _, path := range paths {
		// ErrNotExist means that the namespace is gone, so no pod has its addresses any more.
		if err := addressesIn(path, used); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return used, fmt.Errorf("addresses in %s: %w", path, err)
		}
	}
	return used, nil
}

// namespaces returns the paths of all network namespaces except the node's own. Some are mounted, and others
// exist only because processes run in them.
func namespaces() ([]string, error) {
	own, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("look up the node's network namespace: %w", err)
	}
	seen := map[string]bool{own: true}
	var paths []string
	add := func(name, path string) {
		if !seen[name] {
			seen[name] = true
			paths = append(paths, path)
		}
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("look for network namespaces: %w", err)
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// A line is: ID PARENT MAJOR:MINOR ROOT MOUNTPOINT …. For a network namespace, ROOT is net:[NUMBER]
		// (proc_pid_mountinfo(5)).
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.HasPrefix(fields[3], "net:[") {
			add(fields[3], fields[4])
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, fmt.Errorf("look for network namespaces: %w", err)
	}
	for _, path := range processes {
		if name, err := os.Readlink(path); err == nil {
			add(name, path)
		}
	}
	return paths, nil
}

func addressesIn(path string, into map[netip.Addr]bool) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	h, err := netlinksafe.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			into[addr.Unmap()] = true
		}
	}
	return nil
}
