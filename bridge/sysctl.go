package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"
)

// sysctl is the property that one sysctl of the node's network namespace has the wanted value.
type sysctl struct {
	Key   string // the sysctl's path below /proc/sys
	Value string
	Bound bound
	Why   string // what the sysctl is for
	// Link is the link that the sysctl belongs to. It is empty for a sysctl of the node. If the link is missing, the
	// sysctl isn't checked.
	Link string
	// IfThere means that a missing sysctl isn't wrong, because its kernel module may not be loaded.
	IfThere bool
}

type bound int

// A bound says whether a sysctl must be equal to sysctl.Value, at most as large, or at least as large.
const (
	exactly bound = iota
	atMost
	atLeast
)

func (s sysctl) satisfiedBy(have string) bool {
	if s.Bound == exactly || have == s.Value {
		return have == s.Value
	}
	n, err := strconv.ParseInt(have, 10, 64)
	limit, wrong := strconv.ParseInt(s.Value, 10, 64)
	return err == nil && wrong == nil && (n < limit) == (s.Bound == atMost)
}

func (s sysctl) Kind() Kind { return KindSysctl }

func (s sysctl) String() string { return s.Why }

func (s sysctl) name() string { return strings.ReplaceAll(s.Key, "/", ".") }

// Command returns the command that sets the sysctl to Value. Bound may allow other values too.
func (s sysctl) Command() string { return "sysctl -w " + s.name() + "=" + s.Value }

func (s sysctl) Check(o *Observed) error {
	if s.Link != "" && o.isMissing(s.Link) {
		return nil
	}
	have, err := o.Sysctl(s.Key)
	switch {
	case errors.Is(err, fs.ErrNotExist) && s.IfThere:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s isn't there", s.name())
	case err != nil:
		return fmt.Errorf("%s: %w: %w", s.name(), errUnknown, err)
	case !s.satisfiedBy(have):
		return fmt.Errorf("%s is %s", s.name(), have)
	}
	return nil
}

func (s sysctl) restore(netlinksafe.Handle, *Observed) error { return writeSysctl(s.Key, s.Value) }

// sysctlDirs are tried in this order. An unprivileged container has /proc/sys read-only, so conf/weir.yaml mounts the
// node's /proc/sys/net below /host.
var sysctlDirs = []string{"/proc/sys/", "/host/proc/sys/"}

// setAll writes only the sysctls that have a wrong value. So it succeeds with a read-only /proc/sys if all values are
// right.
//
// Equivalent to: sysctl -w KEY=VALUE for each
func setAll(all []Property) error {
	var errs []error
	for _, p := range all {
		s, ok := p.(sysctl)
		if !ok {
			continue
		}
		have, err := readSysctl(s.Key)
		if s.IfThere && errors.Is(err, fs.ErrNotExist) || err == nil && s.satisfiedBy(have) {
			continue
		}
		errs = append(errs, writeSysctl(s.Key, s.Value))
	}
	return errors.Join(errs...)
}

// writeSysctl writes the value below the first of sysctlDirs. If that directory is read-only, or if writing there is
// forbidden, it tries the second directory. If both fail, it returns the first error.
//
// Equivalent to: sysctl -w KEY=VALUE
func writeSysctl(key, value string) error {
	if have, err := readSysctl(key); err == nil && have == value {
		return nil
	}
	var first error
	for _, dir := range sysctlDirs {
		f, err := os.OpenFile(dir+key, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(value)
			err = errors.Join(err, f.Close())
		}
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
		if !errors.Is(err, unix.EROFS) && !errors.Is(err, fs.ErrPermission) {
			break
		}
	}
	return fmt.Errorf("set sysctl %s=%s: %w", strings.ReplaceAll(key, "/", "."), value, first)
}

// uplinksAcceptRA is the property that links with routes from router advertisements accept further advertisements. A
// node that forwards packets accepts advertisements on a link only if accept_ra is 2 there. With another value, the
// default route from an advertisement expires.
type uplinksAcceptRA struct{}

func (uplinksAcceptRA) Kind() Kind { return KindSysctl }

func (uplinksAcceptRA) String() string {
	return "the node goes on listening to the router that its default route is from"
}

// Command returns a command with the word UPLINK in place of the name of a wrong link.
func (uplinksAcceptRA) Command() string {
	return "sysctl -w net.ipv6.conf.UPLINK.accept_ra=2"
}

func (uplinksAcceptRA) wrongUplinks(o *Observed) (wrong []string, err error) {
	if err := errors.Join(o.routes, o.links); err != nil {
		return nil, fmt.Errorf("routes from router advertisements: %w: %w", errUnknown, err)
	}
	seen := map[int]bool{}
	for _, r := range o.Routes {
		if r.Protocol == unix.RTPROT_RA {
			seen[r.Link] = true
		}
	}
	for _, l := range o.Links {
		if !seen[l.Index] {
			continue
		}
		have, err := o.Sysctl("net/ipv6/conf/" + l.Name + "/accept_ra")
		if err != nil {
			return nil, fmt.Errorf("accept_ra of %s: %w: %w", l.Name, errUnknown, err)
		}
		if have == "1" { // on a router, 1 has no effect
			wrong = append(wrong, l.Name)
		}
	}
	return wrong, nil
}

// Check names the links with accept_ra 1 that have routes from router advertisements. It doesn't name links with
// accept_ra 0, because the administrator has chosen this value.
func (l uplinksAcceptRA) Check(o *Observed) error {
	wrong, err := l.wrongUplinks(o)
	if err == nil && len(wrong) > 0 {
		err = fmt.Errorf("accept_ra is 1 on %s", strings.Join(wrong, ", "))
	}
	return err
}

func (l uplinksAcceptRA) restore(_ netlinksafe.Handle, o *Observed) error {
	wrong, err := l.wrongUplinks(o)
	for _, name := range wrong {
		err = errors.Join(err, writeSysctl("net/ipv6/conf/"+name+"/accept_ra", "2"))
	}
	return err
}
