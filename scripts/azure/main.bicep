// What behalf needs on Azure: README.md beside this file. azuredeploy.json is the same, for deployments without Bicep.
targetScope = 'resourceGroup'

@description('Where everything is made.')
param location string = resourceGroup().location

@description('What names of resources begin with.')
@minLength(3)
@maxLength(20)
param prefix string = 'behalf'

@description('Name of the Key Vault; no other in the world may have it.')
@minLength(3)
@maxLength(24)
param vaultName string = '${take(prefix, 10)}-${uniqueString(resourceGroup().id)}'

@description('Who may do what in the Key Vault: by roles, or by access policies, as older vaults have them.')
@allowed(['rbac', 'access-policies'])
param permissions string = 'rbac'

@description('Object id of the service principal that rotates keys: it may set secrets, and see that there is the vault. Empty: none.')
param rotatorPrincipalId string = ''

@description('Object id of the service principal that retires key versions: it may update secrets. Empty: none.')
param retirerPrincipalId string = ''

@description('Object id of the app registration\'s service principal, for hosts outside Azure, which have no managed identity: it may get secrets. Empty: none.')
param outsidePrincipalId string = ''

@description('Issuer of the tokens of whoever rotates keys without a principal of its own, such as a Kubernetes cluster or a pipeline: an identity for it is made, and may set secrets. Empty: none.')
param rotatorIssuer string = ''

@description('Subject of those tokens, exactly as they have it, such as system:serviceaccount:behalf:rotate.')
param rotatorSubject string = ''

@description('Address that is written to when somebody is denied access to a key.')
param alertEmail string

@description('For how many days the log is kept.')
@minValue(30)
@maxValue(730)
param logDays int = 90

@description('The container image of a release. Empty: no app on Container Apps, only what hosts elsewhere need.')
param image string = ''

@description('Registry that the image is pulled from with the identity of the app, which needs the role AcrPull there. Empty: one that everybody may read.')
param registry string = ''

@description('Where records are kept. postgres: in a database, by as many replicas as are wanted. sqlite: on the disk of the one replica, and gone with it, whenever a revision or the platform replaces it, so that every user has to enrol again: for trying out only.')
@allowed(['postgres', 'sqlite'])
param ledger string = 'postgres'

@description('How many replicas there are on postgres.')
@minValue(1)
@maxValue(30)
param replicas int = 2

@description('Setting client_id.')
param clientId string = ''

@description('Setting tenants.')
param tenants string = tenant().tenantId

@description('Setting grants, as JSON.')
param grants string = '[]'

@description('Settings besides, by name as in spin.toml; none of them a secret.')
param settings object = {}

@description('Setting sweep_key: at least 32 random characters.')
@secure()
param sweepKey string = ''

@description('Setting pseudonym_key: 32 random bytes or more. Never change it.')
@secure()
param pseudonymKey string = ''

@description('Setting postgres_host.')
param postgresHost string = ''

@description('Setting postgres_database.')
param postgresDatabase string = 'behalf'

@description('Setting postgres_user. With a managed identity it is the role that was made for it.')
param postgresUser string = ''

@description('Setting postgres_password. Empty: the managed identity is the credential.')
@secure()
param postgresPassword string = ''

var isOnPostgres = ledger == 'postgres'
var hasPassword = isOnPostgres && !empty(postgresPassword)
var hasRotator = !empty(rotatorIssuer)
var group = resourceGroup().id
var isOnRoles = permissions == 'rbac'
var hasApp = !empty(image)
var keyVaultUrl = 'https://${vaultName}${environment().suffixes.keyvaultDns}'

// Every identity is made for one thing. The app's own is also what its registration at Entra ID trusts (register-app).
resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: '${prefix}-app'
  location: location
}

resource rotator 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = if (hasRotator) {
  name: '${prefix}-rotate'
  location: location
}

resource trust 'Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials@2023-01-31' = if (hasRotator) {
  parent: rotator
  name: 'rotate'
  properties: {
    issuer: rotatorIssuer
    subject: rotatorSubject
    audiences: ['api://AzureADTokenExchange']
  }
}

resource vault 'Microsoft.KeyVault/vaults@2026-02-01' = {
  name: vaultName
  location: location
  properties: {
    tenantId: tenant().tenantId
    sku: { family: 'A', name: 'standard' }
    enableRbacAuthorization: isOnRoles
    enableSoftDelete: true
    softDeleteRetentionInDays: 90
    enablePurgeProtection: true
    enabledForDeployment: false
    enabledForTemplateDeployment: false
    enabledForDiskEncryption: false
    publicNetworkAccess: 'Enabled'
    networkAcls: { bypass: 'None', defaultAction: 'Allow' }
    accessPolicies: isOnRoles ? [] : concat([
      { tenantId: tenant().tenantId, objectId: identity.properties.principalId, permissions: { secrets: ['get'] } }
    ], empty(outsidePrincipalId) ? [] : [
      { tenantId: tenant().tenantId, objectId: outsidePrincipalId, permissions: { secrets: ['get'] } }
    ], empty(rotatorPrincipalId) ? [] : [
      { tenantId: tenant().tenantId, objectId: rotatorPrincipalId, permissions: { secrets: ['set'] } }
    ], hasRotator ? [
      { tenantId: tenant().tenantId, objectId: rotator!.properties.principalId, permissions: { secrets: ['set'] } }
    ] : [], empty(retirerPrincipalId) ? [] : [
      { tenantId: tenant().tenantId, objectId: retirerPrincipalId, permissions: { secrets: ['set'] } }
    ])
  }
}

resource getting 'Microsoft.Authorization/roleDefinitions@2022-04-01' = if (isOnRoles) {
  name: guid(group, vaultName, 'get')
  properties: {
    roleName: 'behalf get (${vaultName})'
    description: 'Gets the keys of tenants by name. Key Vault Secrets User could list the names, too, which are the tenants.'
    type: 'CustomRole'
    permissions: [
      { actions: [], notActions: [], dataActions: ['Microsoft.KeyVault/vaults/secrets/getSecret/action'], notDataActions: [] }
    ]
    assignableScopes: [group]
  }
}

resource setting 'Microsoft.Authorization/roleDefinitions@2022-04-01' = if (isOnRoles) {
  name: guid(group, vaultName, 'set')
  properties: {
    roleName: 'behalf set (${vaultName})'
    description: 'Makes versions of tenants\' keys, and reads none.'
    type: 'CustomRole'
    permissions: [
      { actions: [], notActions: [], dataActions: ['Microsoft.KeyVault/vaults/secrets/setSecret/action'], notDataActions: [] }
    ]
    assignableScopes: [group]
  }
}

resource updating 'Microsoft.Authorization/roleDefinitions@2022-04-01' = if (isOnRoles) {
  name: guid(group, vaultName, 'update')
  properties: {
    roleName: 'behalf update (${vaultName})'
    description: 'Disables and enables versions of tenants\' keys, and reads none.'
    type: 'CustomRole'
    permissions: [
      { actions: [], notActions: [], dataActions: ['Microsoft.KeyVault/vaults/secrets/update/action'], notDataActions: [] }
    ]
    assignableScopes: [group]
  }
}

resource appGets 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (isOnRoles) {
  scope: vault
  name: guid(vault.id, identity.id, 'get')
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', getting.name)
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
  }
}

resource outsideGets 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (isOnRoles && !empty(outsidePrincipalId)) {
  scope: vault
  name: guid(vault.id, outsidePrincipalId, 'get')
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', getting.name)
    principalId: outsidePrincipalId
    principalType: 'ServicePrincipal'
  }
}

resource rotatorSets 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (isOnRoles && !empty(rotatorPrincipalId)) {
  scope: vault
  name: guid(vault.id, rotatorPrincipalId, 'set')
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', setting.name)
    principalId: rotatorPrincipalId
    principalType: 'ServicePrincipal'
  }
}

// Of the vault, and of no secret in it: a task of Azure Pipelines begins by choosing the subscription, which is there for those alone who
// may read something of it.
resource rotatorReads 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(rotatorPrincipalId)) {
  scope: vault
  name: guid(vault.id, rotatorPrincipalId, 'read')
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', 'acdd72a7-3385-48ef-bd42-f606fba81ae7')
    principalId: rotatorPrincipalId
    principalType: 'ServicePrincipal'
  }
}

resource identitySets 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (isOnRoles && hasRotator) {
  scope: vault
  name: guid(vault.id, rotator.id, 'set')
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', setting.name)
    principalId: rotator!.properties.principalId
    principalType: 'ServicePrincipal'
  }
}

resource retirerUpdates 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (isOnRoles && !empty(retirerPrincipalId)) {
  scope: vault
  name: guid(vault.id, retirerPrincipalId, 'update')
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', updating.name)
    principalId: retirerPrincipalId
    principalType: 'ServicePrincipal'
  }
}

resource logs 'Microsoft.OperationalInsights/workspaces@2023-09-01' = {
  name: '${prefix}-log'
  location: location
  properties: {
    sku: { name: 'PerGB2018' }
    retentionInDays: logDays
  }
}

resource audit 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  scope: vault
  name: 'audit'
  properties: {
    workspaceId: logs.id
    logAnalyticsDestinationType: 'Dedicated'
    logs: [{ category: 'AuditEvent', enabled: true }]
  }
}

resource mail 'Microsoft.Insights/actionGroups@2023-01-01' = {
  name: '${prefix}-mail'
  location: 'global'
  properties: {
    groupShortName: 'behalf'
    enabled: true
    emailReceivers: [{ name: 'operator', emailAddress: alertEmail, useCommonAlertSchema: true }]
  }
}

// A request without a token is how Key Vault is asked which tenant it is in (AKV10000), and nobody is denied anything. Nor is who asks for
// a version that is disabled (SecretDisabled), of which the app's own log and status tell.
resource denied 'Microsoft.Insights/scheduledQueryRules@2023-12-01' = {
  name: '${prefix}-denied'
  location: location
  kind: 'LogAlert'
  properties: {
    displayName: 'Access to a key was denied'
    description: 'Key Vault has refused somebody (401, 403): whoever asks lacks a permission, or tries what it may not. If the ResultDescription is empty, it may be a version that is disabled, which behalf status names.'
    severity: 1
    enabled: true
    evaluationFrequency: 'PT5M'
    // Longer than it takes a line to arrive in the log.
    windowSize: 'PT15M'
    scopes: [logs.id]
    skipQueryValidation: true
    criteria: {
      allOf: [
        {
          query: 'AZKVAuditLogs | where _ResourceId =~ "${vault.id}" | where HttpStatusCode in (401, 403) | where ResultDescription !has "AKV10000" | where ResultDescription !has "disabled secret"'
          timeAggregation: 'Count'
          operator: 'GreaterThan'
          threshold: 0
          failingPeriods: { numberOfEvaluationPeriods: 1, minFailingPeriodsToAlert: 1 }
        }
      ]
    }
    autoMitigate: true
    actions: { actionGroups: [mail.id] }
  }
}

resource place 'Microsoft.App/managedEnvironments@2024-03-01' = if (hasApp) {
  name: '${prefix}-environment'
  location: location
  properties: {
    appLogsConfiguration: {
      destination: 'log-analytics'
      logAnalyticsConfiguration: { customerId: logs.properties.customerId, sharedKey: logs.listKeys().primarySharedKey }
    }
  }
}

// One revision at a time: while it is replaced, two run for a moment, which only PostgreSQL is made for.
resource app 'Microsoft.App/containerApps@2024-03-01' = if (hasApp) {
  name: prefix
  location: location
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identity.id}': {} }
  }
  properties: {
    environmentId: place.id
    configuration: {
      activeRevisionsMode: 'Single'
      ingress: { external: true, targetPort: 3000, transport: 'auto', allowInsecure: false }
      registries: empty(registry) ? [] : [{ server: registry, identity: identity.id }]
      secrets: concat(empty(sweepKey) ? [] : [
        { name: 'sweep-key', value: sweepKey }
      ], empty(pseudonymKey) ? [] : [
        { name: 'pseudonym-key', value: pseudonymKey }
      ], hasPassword ? [{ name: 'postgres-password', value: postgresPassword }] : [])
    }
    template: {
      terminationGracePeriodSeconds: 30
      containers: [
        {
          name: 'behalf'
          image: image
          args: concat(['--platform-identity'], isOnPostgres ? ['-f', 'spin-postgres.toml'] : [])
          resources: { cpu: json('0.5'), memory: '1Gi' }
          env: concat([
            { name: 'SPIN_VARIABLE_CLIENT_ID', value: clientId }
            { name: 'SPIN_VARIABLE_TENANTS', value: tenants }
            { name: 'SPIN_VARIABLE_OPERATOR_TENANT', value: tenant().tenantId }
            { name: 'SPIN_VARIABLE_CREDENTIAL', value: 'managed-identity' }
            { name: 'SPIN_VARIABLE_MANAGED_IDENTITY_CLIENT_ID', value: identity.properties.clientId }
            { name: 'SPIN_VARIABLE_KEY_VAULT_CREDENTIAL', value: 'managed-identity' }
            { name: 'SPIN_VARIABLE_KEY_VAULT_URL', value: keyVaultUrl }
            { name: 'SPIN_VARIABLE_KEY_VAULT_TENANT', value: tenant().tenantId }
            { name: 'SPIN_VARIABLE_GRANTS', value: grants }
          ], empty(sweepKey) ? [] : [
            { name: 'SPIN_VARIABLE_SWEEP_KEY', secretRef: 'sweep-key' }
          ], empty(pseudonymKey) ? [] : [
            { name: 'SPIN_VARIABLE_PSEUDONYM_KEY', secretRef: 'pseudonym-key' }
          ], isOnPostgres ? [
            { name: 'SPIN_VARIABLE_POSTGRES_HOST', value: postgresHost }
            { name: 'SPIN_VARIABLE_POSTGRES_DATABASE', value: postgresDatabase }
            { name: 'SPIN_VARIABLE_POSTGRES_USER', value: postgresUser }
            { name: 'SPIN_VARIABLE_POSTGRES_CREDENTIAL', value: hasPassword ? 'password' : 'managed-identity' }
          ] : [], hasPassword ? [
            { name: 'SPIN_VARIABLE_POSTGRES_PASSWORD', secretRef: 'postgres-password' }
          ] : [], map(items(settings), setting => { name: 'SPIN_VARIABLE_${toUpper(setting.key)}', value: string(setting.value) }))
          probes: [
            { type: 'Startup', httpGet: { path: '/healthz', port: 3000 }, periodSeconds: 12, failureThreshold: 10 }
            { type: 'Liveness', httpGet: { path: '/healthz', port: 3000 }, periodSeconds: 10, failureThreshold: 6 }
            { type: 'Readiness', httpGet: { path: '/readyz', port: 3000 }, periodSeconds: 5, failureThreshold: 2 }
          ]
        }
      ]
      scale: { minReplicas: isOnPostgres ? replicas : 1, maxReplicas: isOnPostgres ? replicas : 1 }
    }
  }
}

// Settings of behalf, for hosts elsewhere.
output key_vault_url string = keyVaultUrl
output key_vault_tenant string = tenant().tenantId
output managed_identity_client_id string = identity.properties.clientId

@description('For register-app --managed-identity.')
output identityPrincipalId string = identity.properties.principalId

@description('AZURE_CLIENT_ID of whoever rotates keys with the tokens of rotatorIssuer.')
output rotatorClientId string = hasRotator ? rotator!.properties.clientId : ''

@description('For register-app --assign Behalf.Read.')
output rotatorPrincipalId string = hasRotator ? rotator!.properties.principalId : rotatorPrincipalId

@description('Where the app is.')
output address string = hasApp ? 'https://${app!.properties.configuration.ingress.fqdn}' : ''
