package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/claims"
	"github.com/weir-net/weir/policy/explain"
	"github.com/weir-net/weir/source/objects"
)

// pageSize is how many objects come in one answer. A page is converted before the next page is read, which saves
// memory.
const pageSize = 500

// API reads objects from the API server. It has clients only for the API groups that weirctl uses: client-go's
// clientset would link the code of every group.
type API struct {
	Host    string
	config  *rest.Config
	scheme  *runtime.Scheme
	clients map[schema.GroupVersion]*rest.RESTClient
}

var errNoKubeconfig = errors.New("no kubeconfig says where the API server is: use --kubeconfig FILE")

// Config finds the API server as kubectl does: by the flags, KUBECONFIG, ~/.kube/config, or a pod's service
// account.
func (s *Source) Config() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = s.Kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules,
		&clientcmd.ConfigOverrides{CurrentContext: s.Context}).ClientConfig()
	if err == nil {
		return config, nil
	}
	if clientcmd.IsEmptyConfig(err) {
		return nil, errNoKubeconfig
	}
	return nil, fmt.Errorf("read the kubeconfig: %s", firstLine(err))
}

// NewAPI returns an API for the configuration. It sends nothing.
func NewAPI(config *rest.Config) (*API, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst, config.UserAgent = 50, 100, "weirctl"
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	a := &API{
		Host: config.Host, config: config, scheme: runtime.NewScheme(), clients: map[schema.GroupVersion]*rest.RESTClient{},
	}
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, networkingv1.AddToScheme, discoveryv1.AddToScheme,
	} {
		if err := add(a.scheme); err != nil {
			return nil, err
		}
	}
	metav1.AddToGroupVersion(a.scheme, schema.GroupVersion{Version: "v1"})
	for _, gv := range []schema.GroupVersion{
		corev1.SchemeGroupVersion, networkingv1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion,
	} {
		of := rest.CopyConfig(config)
		of.GroupVersion, of.APIPath = &gv, "/apis"
		if gv.Group == "" {
			of.APIPath = "/api"
		}
		of.NegotiatedSerializer = serializer.NewCodecFactory(a.scheme).WithoutConversion()
		client, err := rest.RESTClientFor(of)
		if err != nil {
			return nil, fmt.Errorf("open the API client: %w", err)
		}
		a.clients[gv] = client
	}
	return a, nil
}

type list interface {
	runtime.Object
	metav1.ListInterface
}

// each reads a list in pieces. It puts each piece into the parameter named into, in place of the piece before, and then
// calls the function page. An empty namespace means all namespaces.
//
// Equivalent to: kubectl get RESOURCE --namespace NAMESPACE --chunk-size 500 (or --all-namespaces)
func (a *API) each(ctx context.Context, r schema.GroupVersionResource, namespace string, into list, page func()) error {
	return a.eachOf(ctx, r, namespace, metav1.ListOptions{}, into, page)
}

// eachOf is like each, but reads only the objects that the options select.
func (a *API) eachOf(
	ctx context.Context, r schema.GroupVersionResource, namespace string, options metav1.ListOptions, into list,
	page func(),
) error {
	options.Limit = pageSize
	for {
		err := a.clients[r.GroupVersion()].Get().NamespaceIfScoped(namespace, namespace != "").Resource(r.Resource).
			VersionedParams(&options, runtime.NewParameterCodec(a.scheme)).Do(ctx).Into(into)
		if err != nil {
			return err
		}
		page()
		if options.Continue = into.GetContinue(); options.Continue == "" {
			return nil
		}
		into.SetContinue("")
	}
}

type loader struct {
	*API
	ctx        context.Context
	namespaces []string // only these are read if the user may not list objects of all namespaces
	explain.Cluster
	slices []discoveryv1.EndpointSlice
}

type resource struct {
	schema.GroupVersionResource
	// needed means that loading fails if the resource's objects can't be read.
	needed  bool
	without string
	read    func(l *loader, r schema.GroupVersionResource, namespace string) error
}

var (
	core       = corev1.SchemeGroupVersion
	networking = networkingv1.SchemeGroupVersion
	discovery  = discoveryv1.SchemeGroupVersion
)

var resources = []resource{
	{core.WithResource("pods"), true, "", func(l *loader, r schema.GroupVersionResource, namespace string) error {
		var pods corev1.PodList
		return l.each(l.ctx, r, namespace, &pods, func() {
			for i := range pods.Items {
				pod, problems := objects.Pod(&pods.Items[i])
				pod.Unready = objects.Unready(&pods.Items[i])
				l.Pods, l.Problems = append(l.Pods, pod), append(l.Problems, problems...)
			}
			pods = corev1.PodList{ListMeta: pods.ListMeta}
		})
	}},
	{
		networking.WithResource("networkpolicies"), true, "",
		func(l *loader, r schema.GroupVersionResource, namespace string) error {
			var policies networkingv1.NetworkPolicyList
			return l.each(l.ctx, r, namespace, &policies, func() {
				for i := range policies.Items {
					p := policies.Items[i]
					p.ManagedFields, p.Annotations = nil, policy.KeepAudit(p.Annotations)
					l.Policies = append(l.Policies, &p)
				}
				policies = networkingv1.NetworkPolicyList{ListMeta: policies.ListMeta}
			})
		},
	},
	{
		core.WithResource("namespaces"), false, "the labels of namespaces",
		func(l *loader, r schema.GroupVersionResource, namespace string) error {
			if namespace != "" {
				var one corev1.Namespace
				err := l.clients[core].Get().Resource(r.Resource).Name(namespace).Do(l.ctx).Into(&one)
				if err == nil {
					l.Namespaces = append(l.Namespaces, objects.Namespace(&one))
				}
				return err
			}
			var all corev1.NamespaceList
			return l.each(l.ctx, r, "", &all, func() {
				for i := range all.Items {
					l.Namespaces = append(l.Namespaces, objects.Namespace(&all.Items[i]))
				}
				all = corev1.NamespaceList{ListMeta: all.ListMeta}
			})
		},
	},
	{
		core.WithResource("nodes"), false, "which addresses are nodes' own",
		func(l *loader, r schema.GroupVersionResource, _ string) error {
			var all corev1.NodeList
			var nodes []policy.Node
			err := l.each(l.ctx, r, "", &all, func() {
				for i := range all.Items {
					node, problems := objects.Node(&all.Items[i])
					nodes, l.Problems = append(nodes, node), append(l.Problems, problems...)
				}
				all = corev1.NodeList{ListMeta: all.ListMeta}
			})
			if err == nil {
				settled, problems := claims.Settle(nodes, claims.Terms{})
				l.Nodes, l.Problems = settled, append(l.Problems, problems...)
			}
			return err
		},
	},
	{
		core.WithResource("services"), false, "which pods Services lead to",
		func(l *loader, r schema.GroupVersionResource, namespace string) error {
			var all corev1.ServiceList
			return l.each(l.ctx, r, namespace, &all, func() {
				for i := range all.Items {
					l.Cluster.Services = append(l.Cluster.Services, objects.Service(&all.Items[i]))
				}
				all = corev1.ServiceList{ListMeta: all.ListMeta}
			})
		},
	},
	{
		discovery.WithResource("endpointslices"), false, "which pods behind Services are ready",
		func(l *loader, r schema.GroupVersionResource, namespace string) error {
			var all discoveryv1.EndpointSliceList
			return l.each(l.ctx, r, namespace, &all, func() {
				l.slices = append(l.slices, all.Items...)
				all = discoveryv1.EndpointSliceList{ListMeta: all.ListMeta}
			})
		},
	},
}

func (s *Source) loadKubernetes(ctx context.Context, namespaces []string) (explain.Cluster, error) {
	config, err := s.Config()
	if errors.Is(err, errNoKubeconfig) {
		err = fmt.Errorf("%w, or --source dir:PATH for files", err)
		if s.Place == "" && s.Context == "" {
			err = fmt.Errorf("no agent runs here, and %w", err)
		}
	}
	if err != nil {
		return explain.Cluster{}, err
	}
	api, err := NewAPI(config)
	if err != nil {
		return explain.Cluster{}, err
	}
	return api.Load(ctx, namespaces...)
}

// Load reads the objects of the cluster. If the user may not list the objects of all namespaces, Load reads those of
// the given namespaces, and Gaps says what is missing.
func (a *API) Load(ctx context.Context, namespaces ...string) (explain.Cluster, error) {
	slices.Sort(namespaces)
	l := &loader{API: a, ctx: ctx, namespaces: slices.Compact(namespaces)}
	for _, r := range resources {
		if err := l.load(r); err != nil {
			return explain.Cluster{}, err
		}
	}
	l.addSlices()
	return l.Cluster, nil
}

// Services reads Services with their endpoints. An empty namespace means all namespaces.
func (a *API) Services(ctx context.Context, namespace string) ([]policy.Service, error) {
	l := &loader{API: a, ctx: ctx}
	for _, r := range resources {
		if r.Resource != "services" && r.Resource != "endpointslices" {
			continue
		}
		if err := r.read(l, r.GroupVersionResource, namespace); err != nil {
			return nil, l.explained(r, namespace, err)
		}
	}
	l.addSlices()
	return l.Cluster.Services, nil
}

// load reads the objects of a resource. If the user may not list all of them, load reads those in the loader's
// namespaces, and Gaps says what is missing.
func (l *loader) load(r resource) error {
	err := r.read(l, r.GroupVersionResource, "")
	if err == nil || !apierrors.IsForbidden(err) {
		return l.explained(r, "", err)
	}
	namespaced := r.Resource != "nodes"
	var read []string
	for _, namespace := range l.namespaces {
		if !namespaced || namespace == "" {
			continue
		}
		switch err := r.read(l, r.GroupVersionResource, namespace); {
		case err == nil:
			read = append(read, namespace)
		case apierrors.IsForbidden(err) && !r.needed, apierrors.IsNotFound(err):
		default:
			return l.explained(r, namespace, err)
		}
	}
	if len(read) == 0 {
		if r.needed {
			return l.explained(r, "", err)
		}
		l.Gaps = append(l.Gaps, fmt.Sprintf("you may not read %s, so weirctl doesn't know %s", r.Resource, r.without))
		return nil
	}
	l.Gaps = append(l.Gaps, fmt.Sprintf("you may list %s only in %s, so those of other namespaces are missing",
		r.Resource, strings.Join(read, ", ")))
	return nil
}

func (l *loader) explained(r resource, namespace string, err error) error {
	return l.listError(l.ctx, r.Resource, namespace, err)
}

func (a *API) listError(ctx context.Context, resource, namespace string, err error) error {
	scope := "--all-namespaces"
	if namespace != "" {
		scope = "--namespace " + namespace
	}
	switch {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err):
		return fmt.Errorf("you may not list %s: an administrator can allow it with a Role (check with: "+
			"kubectl auth can-i list %s %s)", resource, resource, scope)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the API server %s doesn't accept your credentials: log in again (check with: kubectl auth whoami)",
			a.Host)
	case ctx.Err() != nil:
		return fmt.Errorf("the API server %s has not answered: %w", a.Host, ctx.Err())
	}
	return fmt.Errorf("list %s from the API server %s: %s (check with: kubectl cluster-info)", resource, a.Host,
		firstLine(err))
}

func (l *loader) addSlices() {
	by := map[string]*policy.Service{}
	for i := range l.Cluster.Services {
		by[l.Cluster.Services[i].String()] = &l.Cluster.Services[i]
	}
	for i := range l.slices {
		o := &l.slices[i]
		if s := by[o.Namespace+"/"+o.Labels[discoveryv1.LabelServiceName]]; s != nil {
			objects.AddSlice(s, o)
		}
	}
}
