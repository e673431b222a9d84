package manifests

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/policy"
)

type update struct {
	objects *policy.Objects
	err     error
}

// String lists what is in force, "-" for nothing known.
func (u update) String() string {
	if u.objects == nil {
		return "-"
	}
	var all []string
	for _, n := range u.objects.Namespaces {
		all = append(all, "Namespace "+n.Name)
	}
	for _, p := range u.objects.Pods {
		all = append(all, fmt.Sprintf("Pod %s/%s app=%s", p.Namespace, p.Name, p.Labels["app"]))
	}
	for _, p := range u.objects.Policies {
		all = append(all, "NetworkPolicy "+p.Namespace+"/"+p.Name)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// source is a Dir that runs on a directory of its own. It waits with each update until the test has taken it.
type source struct {
	*testing.T
	dir     string
	updates chan update
	ended   chan error
	stop    context.CancelFunc
}

// run starts with the files there.
func run(t *testing.T, files map[string]string) *source {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &source{t, filepath.Join(t.TempDir(), "manifests"), make(chan update), make(chan error, 1), cancel}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		s.write(name, text)
	}
	go func() {
		d := &Dir{Path: s.dir}
		s.ended <- d.Run(ctx, func(o *policy.Objects, err error) {
			select {
			case s.updates <- update{o, err}:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(cancel)
	return s
}

func (s *source) path(name string) string { return filepath.Join(s.dir, name) }

// write makes one event: the file is closed.
func (s *source) write(name, text string) {
	s.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.Fatal(err)
	}
}

func (s *source) remove(name string) {
	s.Helper()
	if err := os.Remove(s.path(name)); err != nil {
		s.Fatal(err)
	}
}

// want compares the next update: the objects in force, and the words that its error has. An error with none of these
// must be nil.
func (s *source) want(objects string, words ...string) {
	s.Helper()
	select {
	case u := <-s.updates:
		if errors.Is(u.err, dirwatch.ErrBeingWritten) { // before the first good state that is told; its close comes next
			s.want(objects, words...)
			return
		}
		s.compare(u, objects, words...)
	case err := <-s.ended:
		s.Fatalf("ended: %v", err)
	case <-time.After(10 * time.Second):
		s.Fatal("no update")
	}
}

func (s *source) compare(u update, objects string, words ...string) {
	s.Helper()
	if diff := cmp.Diff(objects, u.String()); diff != "" {
		s.Errorf("in force: %s", diff)
	}
	if len(words) == 0 && u.err != nil {
		s.Errorf("error: %v", u.err)
	}
	for _, w := range words {
		if u.err == nil || !strings.Contains(u.err.Error(), w) {
			s.Errorf("error: %v, want one with %q", u.err, w)
		}
	}
}

func pod(name, app string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: %s}}\n---\n", name, app)
}

const broken = "apiVersion: v1\nkind: Pod\nmetadata: {nam: a}\n"

func TestDirFollowsItsFiles(t *testing.T) {
	s := run(t, nil)
	s.want("")
	s.write("a.yaml", pod("a", "one"))
	s.want("Pod default/a app=one")
	s.write("b.yml", goodPolicy)
	s.want("NetworkPolicy default/deny, Pod default/a app=one")
	s.write("c.json", `{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ns-1"}}`)
	s.want("Namespace ns-1, NetworkPolicy default/deny, Pod default/a app=one")
	s.write("a.yaml", pod("a", "two")+pod("b", "two"))
	s.want("Namespace ns-1, NetworkPolicy default/deny, Pod default/a app=two, Pod default/b app=two")
	s.remove("a.yaml")
	s.want("Namespace ns-1, NetworkPolicy default/deny")

	elsewhere := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(elsewhere, []byte(pod("c", "three")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(elsewhere, s.path("b.yml")); err != nil {
		t.Fatal(err)
	}
	s.want("Namespace ns-1, Pod default/c app=three")
	if err := os.Rename(s.path("b.yml"), elsewhere); err != nil {
		t.Fatal(err)
	}
	s.want("Namespace ns-1")
}

func TestDirKnowsNothingBeforeAllIsGood(t *testing.T) {
	s := run(t, map[string]string{"a.yaml": pod("a", "one"), "b.yaml": broken, "c.yaml": pod("c", "one")})
	s.want("-", "b.yaml: document 1")
	s.write("a.yaml", pod("a", "two"))
	s.want("-", "b.yaml: document 1")
	s.write("c.yaml", broken)
	s.want("-", "b.yaml: document 1", "c.yaml: document 1")
	s.write("b.yaml", pod("b", "two"))
	s.want("-", "c.yaml: document 1")
	s.write("c.yaml", pod("c", "two"))
	s.want("Pod default/a app=two, Pod default/b app=two, Pod default/c app=two")
}

func TestABrokenFileKeepsWhatItSaid(t *testing.T) {
	s := run(t, map[string]string{"a.yaml": pod("a", "one") + goodPolicy, "b.yaml": pod("b", "one")})
	s.want("NetworkPolicy default/deny, Pod default/a app=one, Pod default/b app=one")
	s.write("a.yaml", pod("new", "two")+broken)
	s.want("NetworkPolicy default/deny, Pod default/a app=one, Pod default/b app=one", "a.yaml: document 2")
	s.write("b.yaml", pod("b", "two"))
	s.want("NetworkPolicy default/deny, Pod default/a app=one, Pod default/b app=two", "a.yaml: document 2")
	s.write("c.yaml", broken) // new and broken: it says nothing, and stops nothing
	s.want("NetworkPolicy default/deny, Pod default/a app=one, Pod default/b app=two", "a.yaml: document 2", "c.yaml: document 1")
	s.remove("c.yaml")
	s.want("NetworkPolicy default/deny, Pod default/a app=one, Pod default/b app=two", "a.yaml: document 2")
	s.write("a.yaml", pod("a", "two"))
	s.want("Pod default/a app=two, Pod default/b app=two")
	s.write("a.yaml", broken)
	s.want("Pod default/a app=two, Pod default/b app=two", "a.yaml: document 1")
	s.remove("a.yaml")
	s.want("Pod default/a app=two, Pod default/b app=two") // nothing is wrong any more; what it said holds for the grace
	s.want("Pod default/b app=two")
}

func TestTheFirstOfTwoFilesCounts(t *testing.T) {
	s := run(t, map[string]string{"b.yaml": pod("x", "b")})
	s.want("Pod default/x app=b")
	s.write("c.yaml", pod("x", "c")+pod("z", "c"))
	s.want("Pod default/x app=b, Pod default/z app=c", "c.yaml: Pod default/x is in b.yaml already")
	s.write("a.yaml", pod("x", "a")+goodPolicy)
	s.want("NetworkPolicy default/deny, Pod default/x app=a, Pod default/z app=c",
		"b.yaml: Pod default/x is in a.yaml already", "c.yaml: Pod default/x is in a.yaml already")
	s.write("b.yaml", goodPolicy+"---\napiVersion: v1\nkind: Namespace\nmetadata: {name: ns-1}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: ns-1}\n")
	s.want("Namespace ns-1, NetworkPolicy default/deny, Pod default/x app=a, Pod default/z app=c",
		"b.yaml: NetworkPolicy default/deny is in a.yaml already", "b.yaml: Namespace ns-1 is in b.yaml already", "c.yaml: Pod default/x")
	s.remove("a.yaml")
	s.want("Namespace ns-1, NetworkPolicy default/deny, Pod default/x app=c, Pod default/z app=c", "b.yaml: Namespace ns-1 is in b.yaml already")
	s.remove("b.yaml")
	s.want("Pod default/x app=c, Pod default/z app=c")
}

func TestOtherFilesAreLeftAlone(t *testing.T) {
	files := []string{"a.txt", "a.yaml.tmp", "a.yaml~", ".a.yaml", ".a.yaml.swp", "yaml", ".yaml", "A.YAML"}
	there := map[string]string{"ok.yaml": pod("a", "one")}
	for _, name := range files {
		there[name] = broken
	}
	s := run(t, there)
	s.want("Pod default/a app=one")
	for _, name := range files {
		s.write(name, pod("b", "two"))
	}
	if err := os.MkdirAll(s.path("sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.write("sub/b.yaml", pod("b", "two"))
	s.write("ok.yaml", pod("a", "two"))
	s.want("Pod default/a app=two")
}

// A manifest that is read while it is being written may lack the very policy that closes a pod.
func TestAFileThatIsBeingWrittenIsNotRead(t *testing.T) {
	s := run(t, map[string]string{"a.yaml": pod("a", "one") + goodPolicy, "b.yaml": pod("b", "one")})
	s.want("NetworkPolicy default/deny, Pod default/a app=one, Pod default/b app=one")
	f, err := os.OpenFile(s.path("a.yaml"), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.write("b.yaml", pod("b", "two"))
	s.want("NetworkPolicy default/deny, Pod default/a app=one, Pod default/b app=two")
	if _, err := f.WriteString(pod("a", "two")); err != nil {
		t.Fatal(err)
	}
	s.write("b.yaml", pod("b", "three"))
	s.want("NetworkPolicy default/deny, Pod default/a app=one, Pod default/b app=three")
	if _, err := f.WriteString(strings.Replace(goodPolicy, "deny", "still", 1)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s.want("NetworkPolicy default/still, Pod default/a app=two, Pod default/b app=three")
}

// What happens while an update is being applied comes with the next one.
func TestChangesDuringAnUpdate(t *testing.T) {
	s := run(t, nil)
	s.write("a.yaml", pod("a", "one"))
	s.write("b.yaml", pod("b", "one"))
	s.write("a.yaml", pod("a", "two"))
	s.remove("b.yaml")
	for {
		select {
		case u := <-s.updates:
			if errors.Is(u.err, dirwatch.ErrBeingWritten) {
				continue // it was, when the directory was first read
			}
			if u.err != nil {
				t.Fatal(u.err)
			}
			if u.String() == "Pod default/a app=two" {
				return
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the last state never came")
		}
	}
}

func TestRunEndsWithItsDirectory(t *testing.T) {
	s := run(t, map[string]string{"a.yaml": pod("a", "one")})
	s.want("Pod default/a app=one")
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	for {
		select {
		case <-s.updates: // a.yaml went first
		case err := <-s.ended:
			if !errors.Is(err, dirwatch.ErrGone) || !strings.Contains(err.Error(), s.dir) {
				t.Errorf("%v, want that %s is gone", err, s.dir)
			}
			return
		case <-time.After(10 * time.Second):
			t.Fatal("goes on without a directory")
		}
	}
}

func TestRunNeedsADirectory(t *testing.T) {
	d := &Dir{Path: filepath.Join(t.TempDir(), "none")}
	err := d.Run(t.Context(), func(*policy.Objects, error) { t.Error("an update") })
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), d.Path) {
		t.Errorf("%v, want that %s doesn't exist", err, d.Path)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	s := run(t, nil)
	s.want("")
	s.stop()
	if err := <-s.ended; err != nil {
		t.Error(err)
	}
}

// Editors save by moving the old file away before they write the new one: the policy must hold in between.
func TestASavedFileIsNeverGone(t *testing.T) {
	s := run(t, map[string]string{"a.yaml": goodPolicy})
	s.want("NetworkPolicy default/deny")
	if err := os.Rename(s.path("a.yaml"), s.path("a.yaml~")); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(s.path("a.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("b.yaml", pod("b", "one")) // has the directory looked at meanwhile
	s.want("NetworkPolicy default/deny, Pod default/b app=one")
	if _, err := f.WriteString(strings.Replace(goodPolicy, "deny", "still", 1)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s.want("NetworkPolicy default/still, Pod default/b app=one")
}
