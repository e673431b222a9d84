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
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/internal/dirwatch"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/test/deltas"
)

type update struct {
	objects *policy.Objects
	err     error
}

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

type source struct {
	*testing.T
	dir     string
	updates chan update
	last    update // the last update that next has returned
	ended   chan error
	stop    context.CancelFunc
}

func run(t *testing.T, files map[string]string) *source {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &source{
		T: t, dir: filepath.Join(t.TempDir(), "manifests"), updates: make(chan update), ended: make(chan error, 1),
		stop: cancel,
	}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		s.write(name, text)
	}
	go func() {
		d, all := &Dir{Path: s.dir}, deltas.NewSum()
		s.ended <- d.Run(ctx, func(delta *policy.Delta, err error) {
			select {
			case s.updates <- update{all.Add(delta), err}:
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(cancel)
	return s
}

func (s *source) path(name string) string { return filepath.Join(s.dir, name) }

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

// want compares the next update with the wanted one. If Dir lists the directory between a change and the change's
// event, Dir reads the file twice, and repeats the update. So want skips repetitions of the last update if the wanted
// update is a different one.
func (s *source) want(objects string, words ...string) {
	s.Helper()
	was := s.last
	u := s.next()
	for u.String() == was.String() && fmt.Sprint(u.err) == fmt.Sprint(was.err) && !u.fits(objects, words...) {
		u = s.next()
	}
	s.compare(u, objects, words...)
}

// fits reports whether the update has the objects, and an error with all words. Without words, it must have no error.
func (u update) fits(objects string, words ...string) bool {
	fits := u.String() == objects && (u.err == nil) == (len(words) == 0)
	for _, w := range words {
		fits = fits && u.err != nil && strings.Contains(u.err.Error(), w)
	}
	return fits
}

// fresh returns the next update that differs from the last one in an object or in its error (see want).
func (s *source) fresh() (u update) {
	s.Helper()
	was := s.last
	for u = s.next(); cmp.Equal(u.objects, was.objects) && fmt.Sprint(u.err) == fmt.Sprint(was.err); {
		u = s.next()
	}
	return u
}

func (s *source) next() (u update) {
	s.Helper()
	defer func() { s.last = u }()
	for {
		select {
		case u = <-s.updates:
			// The file was open when the directory was first read. Its close causes another update.
			if errors.Is(u.err, dirwatch.ErrBeingWritten) {
				continue
			}
			return u
		case err := <-s.ended:
			s.Fatalf("ended: %v", err)
		case <-time.After(time.Minute):
			s.Fatal("no update")
		}
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

const broken = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: x\n"

func TestDirKnowsNothingWhileAFileMayHoldAPolicy(t *testing.T) {
	s := run(t, map[string]string{
		"a.yaml": pod("a", "one"), "b.yaml": broken, "c.yaml": pod("c", "one"),
		"values.yaml": "replicas: 3\n", "kustomization.yaml": "resources: [a.yaml]\n",
		"Chart.yaml":   "apiVersion: v2\nname: x\n",
		"service.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: {{ .Values.name }}}\n",
		"crd.yaml":     "kind: X\napiVersion: example.com/v1\n",
	})
	s.want("-", "b.yaml: document 1", "service.yaml: document 1", "it contains no policy")
	s.write("a.yaml", pod("a", "two"))
	s.want("-", "b.yaml: document 1")
	s.write("c.yaml", "{{- if .Values.policy }}\n")
	// This update still has the error of b.yaml. c.yaml doesn't hold up the start, because its earlier objects are known.
	s.want("-", "b.yaml: document 1", "c.yaml: document 1")
	s.write("b.yaml", pod("b", "two"))
	s.want("Pod default/a app=two, Pod default/b app=two, Pod default/c app=one", "c.yaml: document 1",
		"its last readable content stays in force")
	s.write("d.yaml", broken) // a new broken file: the known objects stay in force, and the error is reported
	s.want("Pod default/a app=two, Pod default/b app=two, Pod default/c app=one", "d.yaml: document 1",
		"has never been readable")
}

func TestIgnoreBroken(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a.yaml": pod("a", "one"), "b.yaml": broken} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if o, err := (&Dir{Path: dir}).Check(); o != nil || err == nil {
		t.Errorf("a broken file: %v, %v", o, err)
	}
	o, err := (&Dir{Path: dir, IgnoreBroken: true}).Check()
	if o == nil || len(o.Pods) != 1 || err == nil || !strings.Contains(err.Error(), "b.yaml") {
		t.Errorf("--ignore-broken: %v, %v", o, err)
	}
}

func TestABrokenFileKeepsWhatItSaid(t *testing.T) {
	s := run(t, map[string]string{"a.yaml": pod("a", "one") + goodPolicy, "b.yaml": pod("b", "one")})
	s.want("NetworkPolicy default/deny, Pod default/a app=one, Pod default/b app=one")
	s.write("a.yaml", pod("new", "two")+broken)
	s.want("NetworkPolicy default/deny, Pod default/a app=one, Pod default/b app=one, Pod default/new app=two",
		"a.yaml: document 2")
	s.write("b.yaml", pod("b", "two"))
	s.want("NetworkPolicy default/deny, Pod default/a app=one, Pod default/b app=two, Pod default/new app=two",
		"a.yaml: document 2")
	s.write("a.yaml", pod("a", "two"))
	s.want("Pod default/a app=two, Pod default/b app=two")
	s.write("a.yaml", broken)
	s.want("Pod default/a app=two, Pod default/b app=two", "a.yaml: document 1")
	s.remove("a.yaml")
	// The error is gone. The removed file's objects stay in force for graceTime.
	s.want("Pod default/a app=two, Pod default/b app=two")
	s.want("Pod default/b app=two")
}

// TestWhatIsBackStaysInForce: if the objects of a removed file come back within graceTime, in the same file or in
// another one, they stay in force. This is so even if Run handles the event of the written file after graceTime,
// because a call of update takes long.
func TestWhatIsBackStaysInForce(t *testing.T) {
	t.Run("in the same file", func(t *testing.T) { comeBack(t, "a.yaml", "a.yaml") })
	t.Run("in another file", func(t *testing.T) { comeBack(t, "a.yaml", "b.yaml") })
}

// comeBack removes an object's file and writes the object again, eight times. It takes turns with the two files.
func comeBack(t *testing.T, file, next string) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, file), filepath.Join(dir, next)
	write := func() {
		if err := os.WriteFile(path, []byte(pod("a", "one")+broken), 0o600); err != nil {
			t.Error(err)
		}
	}
	write()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	removed, written, all := 0, 0, deltas.NewSum()
	gone := false // true if the last update had no error: Run had seen that the file was gone
	err := (&Dir{Path: dir, IgnoreBroken: true}).Run(ctx, func(delta *policy.Delta, err error) {
		if got := (update{all.Add(delta), err}).String(); got != "Pod default/a app=one" {
			t.Errorf("in force: %q", got)
			cancel()
		}
		if gone == (err == nil) && removed > 0 {
			return // Run may send an update twice
		}
		if gone = err == nil; gone {
			path, other = other, path
			write()
			written++
			time.Sleep(graceTime + 20*time.Millisecond)
			return
		}
		if removed++; removed > 8 {
			cancel()
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	if err != nil || written < 8 {
		t.Errorf("written %d times, want at least 8; %v", written, err)
	}
}

func policyOf(metadata, spec string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: " + metadata + "\nspec: " + spec + "\n---\n"
}

// TestWhatABadPolicyMeans: if a part of a policy's rule can't be read, the pods that the policy selects are closed. If
// the selector or the namespace can't be read, the last good version stays in force. Without a good version, an
// unreadable selector closes all pods of the namespace, and a policy with an unreadable namespace is left out.
func TestWhatABadPolicyMeans(t *testing.T) {
	meta, sound := "{name: p, namespace: ns-1}", "{podSelector: {matchLabels: {app: a}}, ingress: [{}]}"
	s := run(t, map[string]string{"p.yaml": policyOf(meta, sound)})
	spec := func(want string, problems ...string) {
		t.Helper()
		u := s.fresh()
		if u.err != nil || len(u.objects.Policies) != 1 {
			t.Fatalf("%v, %v", u, u.err)
		}
		p := u.objects.Policies[0]
		got := fmt.Sprintf("%s %d rules", metav1.FormatLabelSelector(&p.Spec.PodSelector), len(p.Spec.Ingress))
		if p.Namespace+" "+got != "ns-1 "+want {
			t.Errorf("%s %s, want %s", p.Namespace, got, want)
		}
		if len(u.objects.Problems) != len(problems) {
			t.Errorf("problems %v, want %q", u.objects.Problems, problems)
		}
		for i := range min(len(problems), len(u.objects.Problems)) {
			if got := u.objects.Problems[i].String(); !strings.Contains(got, problems[i]) ||
				!strings.Contains(got, "p.yaml, document 1") {
				t.Errorf("%s, want %s", got, problems[i])
			}
		}
	}
	spec("app=a 1 rules")
	s.write("p.yaml", policyOf(meta, "{podSelector: {matchLabels: {app: b}}, ingress: [{form: []}]}"))
	spec("app=b 0 rules", "the pods that it selects are closed")
	s.write("p.yaml", policyOf(meta, "{podSelector: {matchLabels: 1}, ingress: [{}]}"))
	spec("app=a 1 rules", "its last good version stays in force")
	s.write("p.yaml", policyOf("{name: p, namespace: [x]}", sound))
	spec("app=a 1 rules", "its last good version stays in force")
	s.write("p.yaml", policyOf(meta, "{podSelector: {matchLabels: {app: c}}, ingress: [{}]}"))
	spec("app=c 1 rules")
	s.remove("p.yaml")
	s.want("")
	s.write("p.yaml", policyOf(meta, "{podSelector: {matchLabels: 1}, ingress: [{}]}"))
	spec("<none> 0 rules", "all pods of namespace ns-1 are closed")
	s.remove("p.yaml")
	s.want("")
	s.write("p.yaml", policyOf("{name: p, namespace: [x]}", sound))
	s.want("", "p.yaml: document 1", "which namespace it is for isn't known")
}

// TestTwoFilesWithOneObject: if files have different versions of a policy, a pod is isolated if any version isolates
// it, and traffic passes only if all versions allow it. All versions of a pod are in force. If versions of a namespace
// differ in a label, the label's value is unknown.
func TestTwoFilesWithOneObject(t *testing.T) {
	deny := policyOf("{name: p}", "{podSelector: {}}")
	allow := policyOf("{name: p}",
		"{podSelector: {matchLabels: {app: a}}, ingress: [{}], egress: [{}], policyTypes: [Ingress, Egress]}")
	both := policyOf("{name: p}", "{podSelector: {matchLabels: {app: a}}, ingress: [{}]}")
	for _, tc := range []struct {
		a, b string
		want []string
	}{
		{deny, deny, []string{"<none> in=0 out=0 [Ingress]"}}, // equal versions count as one policy
		{deny, allow, []string{"<none> in=0 out=1 [Ingress Egress]", "app=a in=0 out=1 [Ingress Egress]"}},
		{allow, deny, []string{"app=a in=0 out=1 [Ingress Egress]", "<none> in=0 out=1 [Ingress Egress]"}},
		{both, allow, []string{"app=a in=1 out=1 [Ingress Egress]"}},
	} {
		s := run(t, map[string]string{"a.yaml": tc.a, "sub.yaml": tc.b})
		u := s.next()
		if u.err != nil {
			t.Fatal(u.err)
		}
		var got []string
		for _, p := range u.objects.Policies {
			types := p.Spec.PolicyTypes
			if types == nil {
				types = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
			}
			got = append(got, fmt.Sprintf("%s in=%d out=%d %v", metav1.FormatLabelSelector(&p.Spec.PodSelector),
				len(p.Spec.Ingress), len(p.Spec.Egress), types))
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Error(diff)
		}
		if wantProblems := map[bool]int{true: 0, false: 2}[tc.a == tc.b]; len(u.objects.Problems) != wantProblems {
			t.Errorf("problems %v", u.objects.Problems)
		}
		s.stop()
	}
	s := run(t, map[string]string{"b.yaml": pod("x", "b"), "c.yaml": pod("x", "c") + pod("z", "c")})
	s.want("Pod default/x app=b, Pod default/x app=c, Pod default/z app=c")
	s.write("c.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns-2, labels: {a: b, c: d}}\n")
	s.want("Namespace ns-2, Pod default/x app=b")
	s.write("d.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns-2, labels: {a: b, e: f}}\n")
	u := s.fresh()
	want := policy.Namespace{
		Name:    "ns-2",
		Labels:  map[string]string{"a": "b", "kubernetes.io/metadata.name": "ns-2"},
		Unknown: []string{"c", "e"},
	}
	if diff := cmp.Diff([]policy.Namespace{want}, u.objects.Namespaces); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsRead(t *testing.T) {
	s := run(t, map[string]string{
		"a.YAML": pod("a", "one"), "b.Yml": pod("b", "one"), ".c.yaml": pod("c", "one"),
		"d.json": `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "d"}}`,
		"a.txt":  broken, "a.yaml.tmp": broken, "a.yaml~": broken, ".a.yaml.swp": broken, "yaml": broken, "..x.yaml": broken,
	})
	s.want("Pod default/a app=one, Pod default/b app=one, Pod default/c app=one, Pod default/d app=")
	for _, name := range []string{"a.txt", "a.yaml.tmp", "a.yaml~", ".a.yaml.swp", "yaml", "..x.yaml"} {
		s.write(name, pod("b", "two"))
	}
	s.write("a.YAML", pod("a", "two"))
	s.want("Pod default/a app=two, Pod default/b app=one, Pod default/c app=one, Pod default/d app=")
}

// TestSubdirectories: Dir reads manifests in subdirectories and behind symbolic links, and reads them again after
// changes.
func TestSubdirectories(t *testing.T) {
	s := run(t, nil)
	s.want("")
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	do := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	until := func(want string) {
		t.Helper()
		for range 20 {
			if u := s.next(); u.String() == want && u.err == nil {
				return
			}
		}
		t.Fatalf("never %s", want)
	}
	do(os.MkdirAll(s.path("one/two.yaml"), 0o700),
		os.WriteFile(s.path("one/two.yaml/a.yaml"), []byte(pod("a", "one")), 0o600))
	until("Pod default/a app=one")
	s.write("one/two.yaml/a.yaml", pod("a", "two"))
	until("Pod default/a app=two")
	do(os.Mkdir(elsewhere, 0o700), os.WriteFile(elsewhere+"/b.yaml", []byte(pod("b", "one")), 0o600),
		os.Symlink(elsewhere, s.path("link")))
	until("Pod default/a app=two, Pod default/b app=one")
	do(os.WriteFile(elsewhere+"/b.yaml", []byte(pod("b", "two")), 0o600))
	until("Pod default/a app=two, Pod default/b app=two")
	// The first link leads back to its own parent directory. The second link is another name of b.yaml.
	do(os.Symlink("..", s.path("one/loop")), os.Symlink(elsewhere+"/b.yaml", s.path("one/c.yaml")))
	until("Pod default/a app=two, Pod default/b app=two")
	do(os.Rename(s.path("one"), s.path("other")))
	until("Pod default/a app=two, Pod default/b app=two")
	do(os.WriteFile(s.path("other/two.yaml/a.yaml"), []byte(pod("a", "three")), 0o600))
	until("Pod default/a app=three, Pod default/b app=two")
	do(os.RemoveAll(s.path("other")))
	until("Pod default/b app=two")
	do(os.Remove(s.path("link")))
	until("")
}

// TestAConfigMap: kubelet mounts a ConfigMap as links through the link ..data. When kubelet replaces ..data, Dir reads
// the new versions of all files.
func TestAConfigMap(t *testing.T) {
	s := run(t, nil)
	s.want("")
	version := func(name, app string) {
		t.Helper()
		err := errors.Join(
			os.MkdirAll(s.path(name+"/sub"), 0o700),
			os.WriteFile(s.path(name+"/a.yaml"), []byte(pod("a", app)), 0o600),
			os.WriteFile(s.path(name+"/sub/b.yaml"), []byte(pod("b", app)), 0o600),
			os.Symlink(name, s.path("..tmp")), os.Rename(s.path("..tmp"), s.path("..data")))
		if err != nil {
			t.Fatal(err)
		}
	}
	until := func(want string) {
		t.Helper()
		for range 20 {
			if s.next().String() == want {
				return
			}
		}
		t.Fatalf("never %s", want)
	}
	version("..1", "one")
	if err := errors.Join(os.Symlink("..data/a.yaml", s.path("a.yaml")),
		os.Symlink("..data/sub", s.path("sub"))); err != nil {
		t.Fatal(err)
	}
	until("Pod default/a app=one, Pod default/b app=one")
	version("..2", "two")
	until("Pod default/a app=two, Pod default/b app=two")
}

// TestAFileThatIsBeingWrittenIsNotRead: while a file is open for writing, its earlier objects stay in force. A
// half-written file may lack a policy.
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

// TestChangesDuringAnUpdate: if files change during a call of update, a later call has the changes.
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
				continue // the file was still open when Dir first read the directory
			}
			if u.err != nil {
				t.Fatal(u.err)
			}
			if u.String() == "Pod default/a app=two" {
				return
			}
		case <-time.After(time.Minute):
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
		case <-s.updates: // the update for the removal of a.yaml
		case err := <-s.ended:
			if !errors.Is(err, dirwatch.ErrGone) || !strings.Contains(err.Error(), s.dir) {
				t.Errorf("%v, want that %s is gone", err, s.dir)
			}
			return
		case <-time.After(time.Minute):
			t.Fatal("goes on without a directory")
		}
	}
}

func TestRunNeedsADirectory(t *testing.T) {
	d := &Dir{Path: filepath.Join(t.TempDir(), "none")}
	err := d.Run(t.Context(), func(*policy.Delta, error) { t.Error("an update") })
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

// TestASavedFileIsNeverGone: editors move the old file away before they write the new one. In between, the old policy
// stays in force.
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
	s.write("b.yaml", pod("b", "one")) // an update for another file, so that Dir reads the directory
	s.want("NetworkPolicy default/deny, Pod default/b app=one")
	if _, err := f.WriteString(strings.Replace(goodPolicy, "deny", "still", 1)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s.want("NetworkPolicy default/still, Pod default/b app=one")
}
