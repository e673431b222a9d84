// Command image builds weir's container image from the programs in bin/ and Debian's packages of iptables. It needs
// neither Docker nor privileges. The same commit, programs and packages give the same image, bit for bit.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// programs are in the image's /usr/bin. From there "weir-agent install" copies the plugin to the node.
var programs = []string{"weir", "weir-agent", "weirctl"}

func main() {
	var o options
	flag.StringVar(&o.repository, "repository", "../..", "directory of weir's sources")
	flag.StringVar(&o.name, "name", "weir.local/weir:dev", "name:tag that the image is known by where it is imported")
	flag.StringVar(&o.output, "output", "", "file to write")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

type options struct{ repository, name, output string }

func run(o options) error {
	if o.output == "" || flag.NArg() > 0 {
		return errors.New("usage: image --output FILE [--name NAME:TAG] [--repository DIRECTORY]")
	}
	if err := checkName(o.name); err != nil {
		return err
	}
	fmt.Println("  fetching iptables and what it needs from Debian's packages")
	packages, err := fetch("iptables", "base-files")
	if err != nil {
		return err
	}
	debian, used, err := choose(packages)
	if err != nil {
		return err
	}
	fmt.Println("  from", strings.Join(versions(used), " "))
	weir, err := ours(o.repository)
	if err != nil {
		return err
	}
	if err := check(debian, weir); err != nil {
		return err
	}
	revision, created, err := commit(o.repository)
	if err != nil {
		return err
	}
	img, err := assemble(created, map[string]string{
		"org.opencontainers.image.title":    "weir",
		"org.opencontainers.image.licenses": "Apache-2.0 AND GPL-2.0-or-later AND LGPL-2.1-or-later",
		"org.opencontainers.image.revision": revision,
		"net.weir.packages":                 strings.Join(versions(used), " "),
	}, debian, weir)
	if err != nil {
		return err
	}
	digest, err := write(img, o.name, o.output)
	if err != nil {
		return err
	}
	written, err := os.Stat(o.output)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s\n  %s\n  %.1f MB, %.1f MB unpacked\n", o.output, o.name, digest,
		float64(written.Size())/1e6, float64(debian.size()+weir.size())/1e6)
	return nil
}

func ours(repository string) (tree, error) {
	t := tree{}
	for _, name := range programs {
		data, err := os.ReadFile(filepath.Join(repository, "bin", name))
		if err != nil {
			return nil, fmt.Errorf("read weir's programs: %w", err)
		}
		t["usr/bin/"+name] = file{mode: 0o755, data: data}
	}
	return t, addLicences(t, repository)
}

// commit returns the commit's hash and time. The image has this time, so it doesn't depend on the time of the build.
// SOURCE_DATE_EPOCH overrides the time: https://reproducible-builds.org/specs/source-date-epoch/
func commit(repository string) (revision string, created time.Time, err error) {
	seconds := os.Getenv("SOURCE_DATE_EPOCH")
	if out, err := output(repository, "git", "log", "-1", "--format=%H %ct"); err == nil { // this fails without a history
		var at string
		revision, at, _ = strings.Cut(out, " ")
		seconds = cmp.Or(seconds, at)
		if changed, err := output(repository, "git", "status", "--porcelain"); err != nil || changed != "" {
			revision += "-dirty"
		}
	}
	n, err := strconv.ParseInt(cmp.Or(seconds, "0"), 10, 64)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	return revision, time.Unix(n, 0).UTC(), nil
}

func output(dir, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return strings.TrimSuffix(string(out), "\n"), nil
}
