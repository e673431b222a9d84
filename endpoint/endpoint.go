// Package endpoint owns what a node knows of its pods' attachments: one record per attachment, on disk under
// /run/weir, so that it outlives every process and dies with the boot that it describes. The plugin writes records on
// ADD and removes them on DEL; the agent and weirctl read them.
package endpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
)

const (
	// Dir holds weir's runtime state. /run is emptied by a reboot, as are the namespaces that the state speaks of.
	Dir = "/run/weir"

	recordsDir = Dir + "/endpoints"
	suffix     = ".json"
	// endingSuffix is that of records whose attachment is being deleted. Nobody reads them but who deletes it.
	endingSuffix = ".ending"
	// unfinished is a record that isn't whole yet. It is beside the directory, where nobody is told of it, and there is one
	// only, since who writes one holds Lock: what a crash left is overwritten.
	unfinished = Dir + "/endpoint.tmp"
)

// ErrBroken says that a record is there and can't be understood.
var ErrBroken = errors.New("the record is broken")

// Endpoint is the record of one attachment: one interface of one container (CNI specification 1.1, "Attachment").
type Endpoint struct {
	ContainerID string           `json:"containerID"`
	IfName      string           `json:"ifName"`
	Network     string           `json:"network"`
	Netns       string           `json:"netns"`
	Pod         Pod              `json:"pod"`
	Addresses   []Address        `json:"addresses"`
	MAC         string           `json:"mac"`
	HostIf      string           `json:"hostInterface"`
	Enforcement conf.Enforcement `json:"enforcement"`
	Created     time.Time        `json:"created"`
	// Chained says that another plugin made the interface and gave the addresses: HostIf is its link then. Where it isn't
	// known HostIf is empty, and so may MAC be.
	Chained bool `json:"chained,omitempty"`
	// MTU that the plugin was told to give the pod's link, in bytes; 0: none. nil where that isn't known.
	MTU *int `json:"mtu,omitempty"`
	// BridgeIf is the bridge of another plugin's that a chained attachment's link is on; empty if it is on none.
	BridgeIf string `json:"bridgeInterface,omitempty"`
}

// Pod says whose the attachment is. UID is empty where the runtime passed none.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid,omitempty"`
}

// String is namespace/name.
func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Address is one of the pod's addresses with the subnet it was taken from.
type Address struct {
	Addr    netip.Addr   `json:"address"`
	Subnet  netip.Prefix `json:"subnet"`
	Gateway netip.Addr   `json:"gateway"`
}

// ID names the attachment; it is unique on the node. Neither part may hold a colon (CNI specification 1.1,
// "Parameters": container IDs are alphanumeric with _ . -, interface names have no colon).
func (e *Endpoint) ID() string { return ID(e.ContainerID, e.IfName) }

// ID of the attachment of ifName in containerID.
func ID(containerID, ifName string) string { return containerID + ":" + ifName }

func path(id string) string { return filepath.Join(recordsDir, id+suffix) }

func endingPath(id string) string { return filepath.Join(recordsDir, id+endingSuffix) }

// Save writes the record, whole or not at all. The caller holds Lock.
func (e *Endpoint) Save() error {
	making, err := e.Begin()
	if err != nil {
		return err
	}
	_ = making.Close()
	return nil
}

// Begin is Save for who goes on to make the attachment: until it closes what it gets, or ends, however it ends, Busy says
// that somebody is at it. So what a crash left is told from what is still on its way, without waiting for either.
func (e *Endpoint) Begin() (making io.Closer, err error) {
	if err := os.MkdirAll(recordsDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of endpoint records: %w", err)
	}
	data, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode endpoint record %s: %w", e.ID(), err)
	}
	if err := os.WriteFile(unfinished, data, 0o600); err != nil {
		return nil, fmt.Errorf("write endpoint record %s: %w", e.ID(), err)
	}
	// Opened anew: who watches the directory is told when a file that was open for writing is closed, and that is now.
	f, err := os.Open(unfinished)
	if err != nil {
		return nil, fmt.Errorf("open endpoint record %s: %w", e.ID(), err)
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock endpoint record %s: %w", e.ID(), err), f.Close())
	}
	if err := os.Rename(unfinished, path(e.ID())); err != nil {
		return nil, errors.Join(fmt.Errorf("write endpoint record %s: %w", e.ID(), err), f.Close())
	}
	return f, nil
}

// Load reads the record with that ID; the error is fs.ErrNotExist if there is none.
func Load(id string) (*Endpoint, error) { return load(path(id), id) }

func load(path, id string) (*Endpoint, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read endpoint record: %w", err)
	}
	e := &Endpoint{}
	if err := json.Unmarshal(data, e); err != nil {
		return nil, fmt.Errorf("endpoint record %s: %w: %w", path, ErrBroken, err)
	}
	if err := CheckID(e.ID()); err != nil {
		return nil, fmt.Errorf("endpoint record %s: %w: %w", path, ErrBroken, err)
	}
	if e.ID() != id { // a copy would outlive what it is a copy of
		return nil, fmt.Errorf("endpoint record %s: %w: it is of %s", path, ErrBroken, e.ID())
	}
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("endpoint record %s: %w: %w", path, ErrBroken, err)
	}
	return e, nil
}

// check says what the kernel would not take: one record of it would hold up every other pod.
func (e *Endpoint) check() error {
	var err error
	if !e.Chained { // else it is nothing that weir goes by
		_, err = net.ParseMAC(e.MAC)
	}
	for _, a := range e.Addresses {
		no := !a.Addr.IsValid() || a.Addr.IsUnspecified() || a.Addr.Zone() != "" || a.Addr.Is4In6()
		if no || !a.Subnet.Contains(a.Addr) || a.Subnet.Bits() == 0 {
			err = errors.Join(err, fmt.Errorf("address %s in %s can't be", a.Addr, a.Subnet))
		}
	}
	return err
}

// BrokenRecords are records that can't be read, and why, by ID.
type BrokenRecords map[string]error

func (b BrokenRecords) Error() string {
	var all []string
	for _, id := range slices.Sorted(maps.Keys(b)) {
		all = append(all, b[id].Error())
	}
	return strings.Join(all, "; ")
}

// List reads all records, ordered by ID. Records that can't be read are reported beside the others, as BrokenRecords: one
// broken file must not hide every other pod.
func List() ([]Endpoint, error) {
	entries, err := os.ReadDir(recordsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list endpoint records: %w", err)
	}
	var all []Endpoint
	broken := BrokenRecords{}
	for _, entry := range entries {
		id, ok := strings.CutSuffix(entry.Name(), suffix)
		if !ok {
			continue
		}
		e, err := Load(id)
		switch {
		case errors.Is(err, fs.ErrNotExist): // a DEL came between
		case err != nil:
			broken[id] = err
		default:
			all = append(all, *e)
		}
	}
	slices.SortFunc(all, func(a, b Endpoint) int { return strings.Compare(a.ID(), b.ID()) })
	if len(broken) > 0 {
		return all, broken
	}
	return all, nil
}

// WatchDir makes the directory of records, if need be, and returns its path for whoever watches it for changes.
func WatchDir() (string, error) {
	if err := os.MkdirAll(recordsDir, 0o700); err != nil {
		return "", fmt.Errorf("make the directory of endpoint records: %w", err)
	}
	return recordsDir, nil
}

// Lock takes the node-wide lock that guards the choice of addresses and the making of the bridge, and waits for it
// as long as it takes: its holders do a few system calls. The kernel frees it when the process ends, however it ends.
//
// Equivalent to: flock /run/weir/lock
func Lock() (unlock func(), err error) {
	if err := os.MkdirAll(Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make %s: %w", Dir, err)
	}
	f, err := os.OpenFile(filepath.Join(Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
