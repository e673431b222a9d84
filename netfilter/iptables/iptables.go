package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
)

// Flavour is a variant of iptables: legacy has its rules in x_tables, and nft in nf_tables. The kernel checks packets
// with the rules of both flavours, so a node should use only one.
type Flavour string

// The values are parts of the programs' names: iptables-legacy and iptables-nft.
const (
	Legacy Flavour = "legacy"
	NFT    Flavour = "nft"
)

func (f Flavour) other() Flavour {
	if f == Legacy {
		return NFT
	}
	return Legacy
}

const lockWait = "10"

func (d *Driver) detect(ctx context.Context) (err error) {
	if d.Flavour == "" {
		d.Flavour, err = detectFlavour(ctx)
	}
	if f := d.Flavour; f != "" && d.detected.Load() == nil {
		d.detected.Store(&f)
	}
	return err
}

// detectFlavour returns the flavour that the node uses: the flavour with chains of kubelet (KEP-3178), or NFT if both
// have such chains. If neither has them, it returns the flavour with more rules of other programs, or NFT if both have
// equally many. It returns an error if rules can't be read, or if iptables-save or iptables-restore is missing.
func detectFlavour(ctx context.Context) (Flavour, error) {
	used, err := usedFlavour(ctx)
	if err == nil {
		for _, program := range []string{used.program(conf.IPv4) + "-save", used.program(conf.IPv4) + "-restore"} {
			if _, missing := exec.LookPath(program); missing != nil {
				err = missing
			}
		}
	}
	if err != nil {
		return "", fmt.Errorf("find out which iptables the node uses: %w", err)
	}
	return used, nil
}

func usedFlavour(ctx context.Context) (Flavour, error) {
	nft, hint, err := usesNFT()
	if hint || err != nil {
		return NFT, err
	}
	legacy, hint, err := usesLegacy(ctx)
	if hint {
		return Legacy, nil
	}
	if err != nil {
		return "", err
	}
	if legacy > nft {
		return Legacy, nil
	}
	return NFT, nil
}

var hints = []string{"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"}

// usesNFT counts the rules that other programs have in iptables-nft. hint is true if kubelet has chains there. usesNFT
// reads from the kernel, because iptables-nft-save can't print every rule.
//
// Equivalent to: nft list chains ip; iptables-nft-save | grep -v WEIR | grep -c ^-A
func usesNFT() (rules int, hint bool, err error) {
	r := nftnl.NewReader()
	defer r.Close()
	for _, name := range tablesUsed {
		for _, chain := range hints {
			switch _, _, err := r.Hook(tableOf(conf.IPv4, name), chain); {
			case errors.Is(err, unix.EINVAL): // the kernel has no nf_tables
				return 0, false, nil
			case err == nil:
				hint = true
			case !errors.Is(err, nftnl.ErrNotExist):
				return 0, hint, err
			}
		}
		chains, err := rulesOf(r, conf.IPv4, name)
		if err != nil {
			return 0, hint, err
		}
		for chain, all := range chains {
			for _, r := range all {
				if !conf.OwnChain(chain) && !conf.OwnChain(r.target) && !r.accepts {
					rules++
				}
			}
		}
	}
	return rules, hint, nil
}

// usesLegacy counts the rules that other programs have in iptables-legacy. hint is true if kubelet has chains there.
//
// Equivalent to: iptables-legacy-save | grep -v WEIR | grep -c ^-A
func usesLegacy(ctx context.Context) (rules int, hint bool, err error) {
	var errs []error
	for _, name := range tablesUsed {
		there, err := legacyExists(conf.IPv4, name)
		if err == nil && there {
			var out string
			if out, err = Legacy.save(ctx, conf.IPv4, name); err == nil {
				for chain, all := range parseSave(out).rules {
					hint = hint || slices.Contains(hints, chain)
					for _, r := range all {
						if !conf.OwnChain(chain) && !split(r).own() && !accepts(r) {
							rules++
						}
					}
				}
			}
		}
		errs = append(errs, err)
	}
	return rules, hint, errors.Join(errs...)
}

func (f Flavour) program(family conf.Family) string {
	if family == conf.IPv6 {
		return "ip6tables-" + string(f)
	}
	return "iptables-" + string(f)
}

// save returns the rules of a table as text.
//
// Equivalent to: iptables-save -t TABLE (ip6tables-save for IPv6)
func (f Flavour) save(ctx context.Context, family conf.Family, table string) (string, error) {
	return run(ctx, f.program(family)+"-save", "-t", table)
}

func run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	// WaitDelay limits the wait for a child process that keeps the output open. If Run can't read the output to its end
	// within this time, it returns an error, even if the program has succeeded. So the limit is long enough for a busy
	// machine.
	cmd.WaitDelay = 10 * time.Second
	var out bytes.Buffer
	var errOut output
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, errOut.String())
	}
	return out.String(), nil
}

// clean removes weir's jumps and chains from all tables of the flavour, for both families.
//
// Equivalent to: iptables -t TABLE -D CHAIN JUMP; iptables -t TABLE -F WEIR-X; iptables -t TABLE -X WEIR-X; and the
// same with ip6tables
func (f Flavour) clean(ctx context.Context) error {
	var errs []error
	for _, family := range conf.Families {
		errs = append(errs, f.cleanFamily(ctx, family))
	}
	return errors.Join(errs...)
}

func (f Flavour) cleanFamily(ctx context.Context, family conf.Family) error {
	for _, table := range tablesUsed {
		if there, err := f.hasOwn(family, table); err != nil || !there {
			if err != nil {
				return fmt.Errorf("look for weir's chains in table %s of %s: %w", table, f.program(family), err)
			}
			continue
		}
		if err := f.cleanTable(ctx, family, table); err != nil {
			return fmt.Errorf("clean table %s of %s: %w", table, f.program(family), err)
		}
	}
	return nil
}

func (f Flavour) hasOwn(family conf.Family, name string) (bool, error) {
	chains, err := f.chains(family, name)
	return slices.ContainsFunc(chains, conf.OwnChain), err
}

// chains returns the names of the table's chains, or nil if there is no such table. It reads from the kernel, because
// the programs of iptables may be missing, or may fail to print some rules.
func (f Flavour) chains(family conf.Family, name string) (names []string, err error) {
	if f == Legacy {
		if there, err := legacyExists(family, name); err != nil || !there {
			return nil, err
		}
		return legacyChains(family, name)
	}
	r := nftnl.NewReader()
	defer r.Close()
	if names, err = r.Chains(tableOf(family, name)); errors.Is(err, unix.EINVAL) { // the kernel has no nf_tables
		return nil, nil
	}
	return names, err
}

// cleanTable deletes weir's jumps and chains in one transaction, so that no packet meets only a part of the rules.
func (f Flavour) cleanTable(ctx context.Context, family conf.Family, name string) error {
	t, err := f.read(ctx, family, name)
	if err != nil {
		return err
	}
	var empty, jumps, chains strings.Builder
	for chain, lines := range t.rules {
		if conf.OwnChain(chain) {
			fmt.Fprintf(&empty, ":%s - [0:0]\n", chain)
			fmt.Fprintf(&chains, "-X %s\n", chain)
			continue
		}
		for _, l := range lines {
			if split(l).own() {
				fmt.Fprintf(&jumps, "-D %s %s\n", chain, l)
			}
		}
	}
	if jumps.Len()+chains.Len() == 0 {
		return nil
	}
	r, err := startRestorer(f, family, lockWait)
	if err != nil {
		return err
	}
	return r.carryOut(ctx, "*"+name+"\n"+empty.String()+jumps.String()+chains.String()+"COMMIT\n")
}
