package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// families has, for each program, how the file names of its own extensions begin. Both programs share all other
// extensions, whose file names begin with libxt_.
var families = map[string]string{"iptables": "libipt_", "ip6tables": "libip6t_"}

// The agent's rules use these extensions of iptables (netfilter/iptables/text.go). Only ip6tables has matches6.
var (
	matches = []string{
		"bpf", "comment", "connlabel", "conntrack", "mark", "multiport", "physdev", "sctp", "set", "tcp", "udp",
	}
	matches6 = []string{"hl", "icmp6"}
	targets  = []string{"MARK", "MASQUERADE", "NFLOG", "SET", "standard"}
)

// check returns an error if the image lacks an extension, or a program's library. Without this check, the missing file
// would show only on a node.
func check(trees ...tree) error {
	all := tree{}
	for _, t := range trees {
		maps.Copy(all, t)
	}
	var errs []error
	for _, name := range programs {
		errs = append(errs, all.checkProgram("usr/bin/"+name))
	}
	for family, prefix := range families {
		for _, flavour := range []string{"legacy", "nft"} {
			for _, verb := range []string{"", "-save", "-restore"} {
				errs = append(errs, all.checkProgram("usr/sbin/"+family+"-"+flavour+verb))
			}
		}
		names := slices.Concat(matches, targets)
		if family == "ip6tables" {
			names = append(names, matches6...)
		}
		for _, name := range names {
			if !all.has("usr/lib/*/xtables/libxt_"+name+".so") && !all.has("usr/lib/*/xtables/"+prefix+name+".so") {
				errs = append(errs, fmt.Errorf("the extension %s of %s is missing", name, family))
			}
		}
	}
	return errors.Join(errs...)
}

func (t tree) has(pattern string) bool {
	for _, name := range t.glob(pattern) {
		if _, err := t.follow(name); err == nil {
			return true
		}
	}
	return false
}

func (t tree) checkProgram(name string) error {
	way, err := t.follow(name)
	if err != nil {
		return err
	}
	end := way[len(way)-1]
	if t[end].mode&0o111 == 0 {
		return fmt.Errorf("%s can't be executed", name)
	}
	machine, err := t.machine(end)
	if err != nil {
		return err
	}
	if want, err := t.machine("usr/bin/" + programs[0]); err == nil && machine != want {
		return fmt.Errorf("%s is for %s, weir for %s", name, machine, want)
	}
	needed, err := libraries(t, end)
	if err != nil {
		return err
	}
	for _, library := range needed {
		if _, err := t.follow(library); err != nil {
			return fmt.Errorf("%s needs %w", name, err)
		}
	}
	return nil
}

func (t tree) machine(name string) (elf.Machine, error) {
	f, err := elf.NewFile(bytes.NewReader(t[name].data))
	if err != nil {
		return 0, fmt.Errorf("%s is no program: %w", name, err)
	}
	return f.Machine, nil
}
