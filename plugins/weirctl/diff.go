package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/plugins/weirctl/chart"
	"github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/explain"
	"github.com/weir-net/weir/policy/reach"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/source/manifests"
)

var failOn = map[string]func(*reach.Diff) bool{
	"any":    func(d *reach.Diff) bool { return !d.Empty() },
	"opens":  func(d *reach.Diff) bool { return len(d.Opened) > 0 },
	"closes": func(d *reach.Diff) bool { return len(d.Closed) > 0 },
	"never":  func(*reach.Diff) bool { return false },
}

type diffFlags struct {
	source  client.Source
	narrow  narrow
	files   []string
	deleted []string
	fail    string
	output  string
}

func diffCommand() *cobra.Command {
	var f diffFlags
	cmd := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Show which connections a change of policies would open and close, before it is applied",
		Long: "Shows which connections between the pods that exist, and between them and the world, would open and\n" +
			"which would close if the objects in the files were applied. Objects replace those of the same name:\n" +
			"NetworkPolicies, the labels of Namespaces, and the labels and named ports of pods and of workloads'\n" +
			"templates. Nothing is applied.\n\n" +
			"Exit codes: 0 if no connection changes, 5 if connections open or close (see --fail-on), 1 if that can't be\n" +
			"found out, 2 if the arguments are wrong or name nothing.",
		Example: `  weirctl diff -f new.yaml                        # against the cluster
  weirctl diff -f policies/                       # all manifests of a directory
  helm template . | weirctl diff -f -             # what another program writes
  weirctl diff --delete shop/deny-all             # without a policy
  weirctl diff -f new.yaml --fail-on opens        # in CI: only what opens is a failure
  weirctl diff -f new/ --source dir:old/          # two directories, without a cluster`,
		Args: client.NoArgs,
		RunE: interruptible(func(cmd *cobra.Command, _ []string) error { return f.run(cmd) }),
	}
	flags := cmd.Flags()
	f.source.AddFlags(flags)
	f.narrow.addFlags(flags)
	flags.StringArrayVarP(&f.files, "filename", "f", nil, "file or directory of manifests; - for the standard input")
	flags.StringArrayVar(&f.deleted, "delete", nil, "NS/NAME of a NetworkPolicy that the change deletes")
	flags.StringVar(&f.fail, "fail-on", "any", "which changes end with exit code 5: any, opens, closes or never")
	client.CompleteWords(cmd, "fail-on", slices.Sorted(maps.Keys(failOn))...)
	outputFlag(cmd, &f.output, "", "text", "json")
	f.source.CompleteFlags(cmd)
	return cmd
}

func (f *diffFlags) run(cmd *cobra.Command) error {
	fails, ok := failOn[f.fail]
	if !ok {
		return client.Usage(fmt.Errorf("--fail-on %s: must be any, opens, closes or never", f.fail))
	}
	format, err := client.ParseFormat(f.output)
	if err != nil {
		return client.Usage(err)
	}
	if _, err := f.narrow.filter(); err != nil {
		return err
	}
	deleted, err := policyNames(f.deleted)
	if err != nil {
		return err
	}
	if len(f.files)+len(deleted) == 0 {
		return client.Usage(errors.New("nothing to compare: use -f FILE, -f DIRECTORY, -f - or --delete NS/NAME"))
	}
	file, err := readFiles(f.files, cmd.InOrStdin())
	if err != nil {
		return err
	}
	if err := onlyDeleted(deleted, file.Policies); err != nil {
		return err
	}
	c, unknown, err := load(cmd, &f.source, f.narrow.namespaces, namespacesOf(file, deleted))
	if err != nil {
		return err
	}
	if kind, _, err := f.source.Kind(); err == nil && kind != client.FromKubernetes && len(c.Gaps) > 0 {
		return errors.New(chart.OneLine(strings.Join(c.Gaps, "; "))) // the change may replace a policy that could not be read
	}
	filter, more, err := f.narrow.resolve(c)
	if err != nil {
		return err
	}
	before := c.State()
	after := before
	var applied reach.Applied
	after.Objects, applied = reach.Apply(before.Objects, file, deleted...)
	if len(applied.Missing) > 0 {
		near := explain.NearNames(strings.TrimPrefix(applied.Missing[0], "NetworkPolicy "), namesOf(before.Policies))
		return client.Usage(fmt.Errorf("--delete: there is no %s", chart.OneLine(strings.Join(applied.Missing, ", ")+near)))
	}
	d := reach.Compare(before, after, c.Services)
	if err := f.narrow.check(d.After, filter); err != nil {
		return err
	}
	d.Opened, d.Closed = d.After.Filter(d.Opened, filter), d.After.Filter(d.Closed, filter)
	change := chart.Change{
		View:   chart.View{Matrix: d.After, Title: f.narrow.title(), MaxRows: f.narrow.rows},
		Opened: d.Opened, Closed: d.Closed, Applied: applied,
	}
	change.Notes = slices.Concat(unknown, more, notes(c, d.After))
	for _, p := range ruleset.Together(file.Problems) {
		change.Notes = append(change.Notes, p.String())
	}
	for _, u := range file.Unenforced {
		change.Notes = append(change.Notes, u.String())
	}
	change.Notes = append(change.Notes, idle(file.Policies, after.Pods)...)
	change.Notes = append(change.Notes, flips(before.Policies, after.Policies)...)
	warn(cmd, change.Notes)
	print := chart.DiffTable
	if format == client.JSON {
		print = chart.DiffJSON
	}
	if err := print(cmd.OutOrStdout(), change); err != nil {
		return err
	}
	if fails(d) {
		return client.Exit(client.ExitChanges, nil)
	}
	return nil
}

// idle names policies that select no pod, often because their namespace is wrong.
func idle(policies []*networkingv1.NetworkPolicy, pods []policy.Pod) (notes []string) {
	for _, np := range policies {
		selector, err := metav1.LabelSelectorAsSelector(&np.Spec.PodSelector)
		if err != nil || slices.ContainsFunc(pods, func(p policy.Pod) bool {
			return p.Namespace == np.Namespace && !p.HostNetwork &&
				(selector.Matches(labels.Set(p.Labels)) || len(p.Unknown) > 0)
		}) {
			continue
		}
		note := fmt.Sprintf("NetworkPolicy %s/%s selects no pod that exists", np.Namespace, np.Name)
		if np.Namespace == metav1.NamespaceDefault {
			note += "; a manifest without a namespace counts for the namespace default"
		}
		notes = append(notes, note)
	}
	return notes
}

func flips(before, after []*networkingv1.NetworkPolicy) (notes []string) {
	was := map[policy.Name]bool{} // whether the policy was audited
	for _, np := range before {
		was[policy.Name{Namespace: np.Namespace, Name: np.Name}], _ = policy.Audited(np)
	}
	for _, np := range after {
		audited, existed := was[policy.Name{Namespace: np.Namespace, Name: np.Name}]
		object := fmt.Sprintf("NetworkPolicy %s/%s", np.Namespace, np.Name)
		switch now, err := policy.Audited(np); {
		case err != nil:
			notes = append(notes, fmt.Sprintf("%s: %s: %v", object, policy.AuditAnnotation, err))
		case now && !existed:
			notes = append(notes, object+" is audited: it isolates nothing and allows nothing")
		case now && !audited:
			notes = append(notes, object+" is enforced, and will be audited: then it isolates nothing and allows nothing")
		case audited && !now:
			notes = append(notes, object+" is audited, and will be enforced")
		}
	}
	return notes
}

func namespacesOf(file policy.Objects, deleted []policy.Name) (all []string) {
	for _, np := range file.Policies {
		all = append(all, np.Namespace)
	}
	for _, p := range file.Pods {
		all = append(all, p.Namespace)
	}
	for _, w := range file.Workloads {
		all = append(all, w.Namespace)
	}
	for _, n := range file.Namespaces {
		all = append(all, n.Name)
	}
	for _, n := range deleted {
		all = append(all, n.Namespace)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func policyNames(texts []string) (names []policy.Name, err error) {
	for _, text := range texts {
		namespace, name, ok := strings.Cut(text, "/")
		if !ok || namespace == "" || name == "" {
			return nil, client.Usage(fmt.Errorf("--delete %q: must be NAMESPACE/NAME of a NetworkPolicy", text))
		}
		names = append(names, policy.Name{Namespace: namespace, Name: name})
	}
	return names, nil
}

func onlyDeleted(deleted []policy.Name, policies []*networkingv1.NetworkPolicy) error {
	for _, n := range deleted {
		if slices.Contains(namesOf(policies), n.Namespace+"/"+n.Name) {
			return client.Usage(fmt.Errorf("--delete %s/%s: the files have this policy too", n.Namespace, n.Name))
		}
	}
	return nil
}

func namesOf(policies []*networkingv1.NetworkPolicy) (names []string) {
	for _, np := range policies {
		names = append(names, np.Namespace+"/"+np.Name)
	}
	return names
}

// maxFile is the size in bytes of the largest file that readFiles reads.
const maxFile = 64 << 20

func readFiles(paths []string, stdin io.Reader) (policy.Objects, error) {
	texts := map[string][]byte{}
	read := func(name string, from io.Reader) error {
		text, err := io.ReadAll(io.LimitReader(from, maxFile+1))
		if err == nil && len(text) > maxFile {
			err = fmt.Errorf("it has more than %d MiB", maxFile>>20)
		}
		if err != nil {
			return fmt.Errorf("-f %s: %w", name, err)
		}
		texts[name] = text
		return nil
	}
	for _, p := range paths {
		if p == "-" {
			if err := read("-", stdin); err != nil {
				return policy.Objects{}, err
			}
			continue
		}
		err := filepath.WalkDir(p, func(name string, d fs.DirEntry, err error) error {
			extension := strings.ToLower(filepath.Ext(name))
			if err != nil || d.IsDir() || (name != p && !slices.Contains([]string{".yaml", ".yml", ".json"}, extension)) {
				return err
			}
			opened, err := os.Open(name)
			if err != nil {
				return err
			}
			defer func() { _ = opened.Close() }()
			return read(name, opened)
		})
		if errors.Is(err, fs.ErrNotExist) {
			return policy.Objects{}, client.Usage(fmt.Errorf("-f %s: there is no such file or directory", p))
		}
		if err != nil {
			return policy.Objects{}, fmt.Errorf("read -f %s: %w", p, err)
		}
	}
	objects, err := manifests.Read(texts)
	if err != nil {
		return objects, fmt.Errorf("read the change: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if len(paths) > 0 && objects.Empty() {
		why := []string{"there is no object that policies depend on"}
		for _, u := range objects.Unenforced {
			why = append(why, u.String())
		}
		return objects, fmt.Errorf("-f %s: %s", strings.Join(paths, ", "), chart.OneLine(excerpt.List(why, "; ")))
	}
	return objects, nil
}
