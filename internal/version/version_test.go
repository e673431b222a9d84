package version

import (
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

func TestLine(t *testing.T) {
	platform := ", " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
	set := func(settings ...debug.BuildSetting) *debug.BuildInfo { return &debug.BuildInfo{Settings: settings} }
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "5a067641f0ab0123456789abcdef0123456789ab"}
	when := debug.BuildSetting{Key: "vcs.time", Value: "2026-11-27T21:12:52Z"}
	for name, c := range map[string]struct {
		info *debug.BuildInfo
		want string
	}{
		"a commit": {set(revision, when), "weir: commit 5a067641f0ab (2026-11-27T21:12:52Z)"},
		"uncommitted": {
			set(revision, when, debug.BuildSetting{Key: "vcs.modified", Value: "true"}),
			"weir: commit 5a067641f0ab with changes (2026-11-27T21:12:52Z)",
		},
		"clean": {
			set(revision, when, debug.BuildSetting{Key: "vcs.modified", Value: "false"}),
			"weir: commit 5a067641f0ab (2026-11-27T21:12:52Z)",
		},
		"no git": {set(), "weir: commit unknown"},
	} {
		if got := line("weir", c.info); got != c.want+platform {
			t.Errorf("%s: %q, want %q", name, got, c.want+platform)
		}
	}
}

// TestPrograms: weir, weir-agent and weirctl, when built by make, print the commit that Go has written into them.
func TestPrograms(t *testing.T) {
	head := ""
	// Go finds no commit in a copy without .git, nor in a linked work tree, where .git is a file.
	if git, err := os.Stat("../../.git"); err == nil && git.IsDir() {
		if out, err := exec.Command("git", "rev-parse", "HEAD").Output(); err == nil {
			head = string(out[:12])
		}
	}
	for program, calls := range map[string][]string{
		"weir": {"--version"}, "weir-agent": {"--version"}, "weirctl": {"--version", "version"},
	} {
		t.Run(program, func(t *testing.T) {
			bin := t.TempDir()
			path := filepath.Join(bin, program)
			build := exec.Command("make", "-C", "../..", "BIN="+bin, path)
			// This test may run in a process of make. The make that it starts must not get the variables of that
			// process.
			build.Env = append(os.Environ(), "MAKEFLAGS=", "MFLAGS=")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			info, err := buildinfo.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			want := line(program, info) + "\n"
			if !strings.Contains(want, head) {
				t.Errorf("the program was built from %s, and it says %s", head, want)
			}
			for _, call := range calls {
				if out, err := exec.Command(path, call).Output(); err != nil || string(out) != want {
					t.Errorf("%s %s: %v: %q, want %q", program, call, err, out, want)
				}
			}
		})
	}
}
